"""OPT-13B and OPT-30B on one GPU in one go: profiles, runs around each model's knee, and what the adapter costs.

::

    pair_campaign.py a FOLDER SHARED --seconds N &    # OPT-13B, and with `b` OPT-30B; together, SHARED is where they
    pair_campaign.py b FOLDER SHARED --seconds N      # tell each other whose turn it is

Both engines start at once, in memory of fixed sizes; while one is timed, the other sleeps. First comes the profile,
as in `campaign`, and after it what runs do: decode batches in rotation, and closed loops under the policies. They
tell what deciding costs, and whether the table holds for steps as they come in runs. Rates are shares of the knee
that the simulation shows with the profile just taken. Then come runs, what matters most first; vLLM's own scheduler
and ours in turn on the same saturated engine; the other model; and the rest of the runs while time lasts. All is
written as it comes (``runs-a.jsonl.gz``: every step, and the GPU time of each CUDA graph). `--tiny` is for a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import numpy as np
from servetwin.core.llm import CumulativeSLO, EngineLimits
from servetwin.experiments.validation.replay.llm import MeasuredRun, Sent, replay, score
from servetwin.profiles.llm.schema import TokenModel
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.real.vllm.engine import EngineOptions, VllmEngine
from servetwin.real.vllm.plan import Planned
from servetwin.real.vllm.profiling.fitting.grid_fit import tokens_section
from servetwin.real.vllm.profiling.measuring.step_grid import SMALL, Grid, Together, _Bench, _falling, measure
from servetwin.real.vllm.scheduler import Estimates, Settings, slo_scales

DECODE = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32))
LARGER = (*range(288, 513, 32), *range(576, 1025, 64))
FEWER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
#: Tokens that a request generates.
OUTPUT = (16, 48)
TIGHT, LOOSE = "3+1.5", "5+2"


def setting(name: str, tiny: bool) -> tuple[EngineOptions, Grid]:
    """The engine called *name*, and what to measure of it."""
    if tiny:
        options = EngineOptions(model="tiny", kv_bytes=64 << 20, max_sequences=64, max_batched_tokens=2048)
        return options, dataclasses.replace(SMALL, repeats=2, steps=6)
    common: dict[str, Any] = {
        "dtype": "float16",
        "max_model_len": 2048,
        "max_batched_tokens": 8192,
        "gpu_memory_utilization": 0.15,  # only checked against what is free; kv_bytes decides
        "graphs_for": "all",
    }
    if name == "a":
        options = EngineOptions(
            model="opt-13b", max_sequences=256, kv_bytes=2560 * 16 * 819_200, graphs=(*DECODE, *LARGER), **common
        )
        grid = Grid(
            prefill=(1, 16, 32, *range(64, 257, 32), *LARGER, 1280, 1536, 1792, 2047),
            prompts=(1, 2, 4),
            beyond=(3072, 4096),
            long=(256,),
            decode=DECODE,
            contexts=(32, 128, 256, 512),
            steps=7,
            mixed_tokens=(48, 112, 240, 496),
            mixed_sequences=(4, 16, 32, 64),
            chunks=(512,),
        )
        return options, grid
    larger = (160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
    options = EngineOptions(
        model="opt-30b", max_sequences=128, kv_bytes=768 * 16 * 1_376_256, graphs=(*FEWER, *larger), **common
    )
    grid = Grid(
        prefill=(1, 16, 32, 64, 96, 128, *larger, 1536, 2047),
        prompts=(1, 4),
        beyond=(3072,),
        long=(256,),
        decode=FEWER[:-1],
        contexts=(32, 128, 256),
        mixed_tokens=(48, 240),
        mixed_sequences=(8, 24),
        chunks=(512,),
        repeats=2,
    )
    return options, grid


class Pair:
    """One of the two processes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name, self.folder, self.shared = args.name, args.folder, args.shared
        self.tiny, self.end = args.tiny, args.seconds
        self.options, self.grid = setting(args.name, args.tiny)
        self.began = float(os.environ.get("T0", time.time()))
        self.replays: list[tuple[float, Any, Any]] = []
        self.engine: VllmEngine
        self.table: TokenTable
        self.solo: tuple[float, float]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shared.mkdir(parents=True, exist_ok=True)

    # -- time, notes, the other one -----------------------------------------------------------------------

    def now(self) -> float:
        return time.time() - self.began

    def say(self, *words: object) -> None:
        print(f"{self.now():7.1f} {self.name}", *words, flush=True)

    def keep(self, kind: str, **what: Any) -> None:
        with gzip.open(self.folder / f"runs-{self.name}.jsonl.gz", "at", compresslevel=3) as file:
            file.write(json.dumps({"kind": kind, **what}, separators=(",", ":")) + "\n")

    def mark(self, what: str) -> None:
        (self.shared / what).touch()

    def wait(self, what: tuple[str, ...], until: float) -> bool:
        while not any((self.shared / name).exists() for name in what):
            if self.now() > until:
                return False
            time.sleep(0.1)
        return True

    def safely(self, what: Callable[..., Any], *args: Any) -> Any:
        """What goes wrong in one part must not end the others."""
        try:
            return what(*args)
        except Exception:
            self.say("FAILED", what.__name__, traceback.format_exc()[-1500:])

    # -- the GPU's part of a step -------------------------------------------------------------------------

    def spy(self) -> None:
        """Have an event before and after each CUDA graph."""
        import torch

        if not torch.cuda.is_available():
            return
        plain = torch.cuda.CUDAGraph.replay

        def spied(graph: Any) -> None:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            at = time.monotonic()
            before.record()
            plain(graph)
            after.record()
            self.replays.append((at, before, after))

        torch.cuda.CUDAGraph.replay = spied

    def gpu_times(self) -> list[list[float]]:
        """[when launched, milliseconds] of the graphs since the last call."""
        if self.replays:
            import torch

            torch.cuda.synchronize()
        zero = self.engine.scheduler.zero
        out = [[round(at - zero, 6), round(a.elapsed_time(b), 4)] for at, a, b in self.replays]
        self.replays.clear()
        return out

    # -- parts --------------------------------------------------------------------------------------------

    def profile(self) -> None:
        measured = measure(self.engine, self.grid, lambda what: self.say("profile:", what))
        described = self.engine.describe()
        self.keep("engine", **described, grid=dataclasses.asdict(self.grid))
        for one in measured:
            self.keep("profile", what=one.kind, steps=[campaign._flat(s) for s in one.steps], intake=one.intake)
        self.keep("replays", what="profile", gpu=self.gpu_times())
        tokens = tokens_section(measured, described, self.grid, "runs.jsonl.gz")["tokens"]
        self.table = TokenTable(TokenModel.model_validate(tokens["kinds"]["measured"]), hold=True)
        self.solo = (tokens["solo"]["d0"], tokens["solo"]["d1"])
        large = self.name == "a"
        self.rotation(10 if large else 4)
        for n in (4, 8, 16, 24, 32, 48, 16, 8) if large else (4, 12, 24):
            self.closed(n, 90 if large else 60, "vllm_v1")
        for n in (8, 24, 48, 16) if large else (8, 24):
            self.closed(n, 70 if large else 50, "vllm")
        for policy in ("neustream_llm", "edf_llm") if large else ():
            for n in (16, 48):
                self.closed(n, 60, policy)

    def rotation(self, passes: int) -> None:
        """Decode batches of all sizes and contexts in a random order."""
        rng = random.Random(1)
        bench = _Bench(self.engine, self.say)
        bench.install(Together())
        sizes = [size for size in self.grid.decode if size <= 96]
        with self.engine.undisturbed():
            for _ in range(passes):
                some = sorted(rng.sample(sizes, min(4, len(sizes))))
                bench.run("decode", _falling(some, rng.choice([40, 90, 160, 260, 400]), 6))
        for one in bench.done:
            self.keep("profile", what="rotation", steps=[campaign._flat(s) for s in one.steps], intake=one.intake)
        self.engine.empty()
        self.engine.scheduler.keep_log = False
        self.replays.clear()

    def closed(self, n: int, count: int, policy: str, what: str = "calibration") -> None:
        """*n* requests at a time under *policy* until *count* steps are over: what runs do, without a client."""
        rng, scheduler = random.Random(n), self.engine.scheduler
        self.engine.empty()
        scheduler.install(Settings(policy=policy), estimates=self.estimates(LOOSE))
        scheduler.keep_log = True
        number, intake = 0, []
        with self.engine.undisturbed():
            while len(scheduler.log) < count:
                while len(scheduler.tasks) < n:
                    number += 1
                    begun, prompt = time.monotonic(), rng.choice(campaign.PROMPTS)
                    self.engine.add(Planned(number, 0.0, prompt, rng.randint(*OUTPUT), OUTPUT[1]), begun)
                    intake.append((prompt, time.monotonic() - begun))
                self.engine.step()
        steps = [campaign._flat(s) for s in scheduler.log]
        self.keep("closed", what=what, n=n, policy=policy, steps=steps, intake=intake, gpu=self.gpu_times())
        self.engine.empty()
        scheduler.log.clear()
        scheduler.times.clear()
        self.replays.clear()

    def estimates(self, slo: str) -> Estimates:
        p, d = slo_scales(slo)
        prefill = self.table.prefill
        return Estimates(prefill, self.table.decode, CumulativeSLO(p, d, *self.solo, prefill))

    def knee(self, rates: list[int]) -> int:
        """The largest rate at which `vllm-v1` has 90 % of requests on time in simulation, with each of two seeds."""
        limits = EngineLimits(
            blocks=self.engine.scheduler.blocks,
            block_size=self.engine.scheduler.block_size,
            max_batched_tokens=self.options.max_batched_tokens,
            max_sequences=self.options.max_sequences,
            whole_prompt=True,
        )
        slo, best = self.estimates(TIGHT).slo, rates[0]
        for rate in rates:
            shares = []
            for seed in (10, 11):
                wanted = campaign.requests(rate, 1, seed, 200, OUTPUT)
                sent = [Sent(i, a, int(p), int(n), OUTPUT[1], "", ()) for i, (a, p, n) in enumerate(wanted)]
                run = MeasuredRun("", "vllm-v1", TIGHT, rate, 1, 0, 0, 0.0, tuple(sent))
                shares.append(score(run, replay(run, limits, self.table, slo)[0], slo).good / len(sent))
            self.say("simulated", rate, shares)
            if min(shares) >= 0.9:
                best = rate
        return best

    def serve(self, cell: dict[str, Any], limit: float) -> None:
        planned = [Planned(i, a, int(p), int(n), cell["limit"]) for i, (a, p, n) in enumerate(cell["requests"])]
        if self.now() + planned[-1].arrival + 2.5 > limit:
            self.say("no time for", cell["id"])
            return
        self.replays.clear()
        settings = Settings(policy=campaign.POLICIES.get(cell["policy"]))
        made = self.engine.serve(planned, settings, estimates=self.estimates(cell["slo"]), stop_after=15.0)
        rows = [
            [r.id, r.arrival, r.prompt, r.output, r.queued, r.outcome, r.preemptions, [round(x, 6) for x in r.times]]
            for r in made.requests
        ]
        steps = [campaign._flat(s) for s in made.steps]
        late = round(1e3 * max(made.lateness), 3)
        facts = {k: v for k, v in cell.items() if k != "requests"}
        gpu = self.gpu_times()
        self.keep("run", **facts, requests=rows, steps=steps, late_ms=late, intake=made.intake, gpu=gpu)
        mean = [float(np.mean(x)) if len(x) else 0.0 for x in ([s[3] - s[0] for s in steps], [g[1] for g in gpu])]
        self.say(cell["id"], "steps", len(steps), "ms", round(1e3 * mean[0], 2), "of which GPU", round(mean[1], 2))

    def adapter(self, limit: float, pairs: int, count: int) -> None:
        """vLLM's own scheduler, and ours with the policy that decides as it does: the same requests, all at once."""
        from vllm.v1.core.sched.scheduler import Scheduler

        scheduler, rng = self.engine.scheduler, random.Random(7)
        ours = type(scheduler)
        lengths = [(campaign.PROMPTS[i % 100], rng.randint(*OUTPUT)) for i in range(count)]
        tokens = sum(n for _, n in lengths)
        for turn in range(2 * pairs):
            own = turn % 4 in (0, 3)
            if self.now() + 10 > limit:
                self.say("no time for the adapter", turn)
                return
            self.engine.empty()
            scheduler.install(Settings(policy="vllm_v1"))
            scheduler.keep_log = False
            if own:  # the very object, without anything of ours
                scheduler.__class__ = Scheduler
            try:
                with self.engine.undisturbed():
                    for i, (prompt, output) in enumerate(lengths):
                        self.engine.add(Planned(i + 1, 0.0, prompt, output), 0.0)
                    ends = [time.monotonic()]
                    while self.engine.engine.has_unfinished_requests():
                        self.engine.engine.step()
                        ends.append(time.monotonic())
            finally:
                scheduler.__class__ = ours
            seconds, steps = ends[-1] - ends[0], len(ends) - 1
            gpu = sum(ms for _, ms in self.gpu_times())
            which = "own" if own else "ours"
            self.keep("adapter", which=which, turn=turn, seconds=seconds, steps=steps, tokens=tokens, gpu_ms=gpu)
            self.say("adapter", which, round(tokens / seconds, 1), "tokens/s", steps, "steps", round(gpu), "GPU ms")

    # -- in order -----------------------------------------------------------------------------------------

    def cell(self, policy: str, slo: str, rate: float, cv: float, repeat: int, count: int) -> dict[str, Any]:
        return campaign.planned(
            policy, slo, round(rate, 1), cv, int(10 * cv), repeat, count // 4 if self.tiny else count, OUTPUT
        )

    def go(self) -> None:
        try:
            self.engine = VllmEngine(self.options)
            self.say(json.dumps(self.engine.describe()))
        finally:
            self.mark(f"{self.name}-started")
        self.spy()
        (self.first if self.name == "a" else self.second)()

    def first(self) -> None:
        self.wait(("b-started",), min(0.25 * self.end, 110))
        self.profile()
        knee = self.knee([40, 80, 120] if self.tiny else list(range(28, 81, 4)))
        low, near, high = 0.5 * knee, 0.8 * knee, 1.1 * knee
        six = [(p, LOOSE if p.endswith("llm") and p != "vllm" else TIGHT) for p in campaign.POLICIES]
        six += [("neustream-llm", TIGHT), ("edf-llm", TIGHT)]

        def all_of(rate: float, cv: float, repeat: int = 0) -> list[dict[str, Any]]:
            return [self.cell(p, s, rate, cv, repeat, 200 if rate == low else 240) for p, s in six]

        begin = all_of(near, 1) + [self.cell(p, s, near, 1, 1, 240) for p, s in (six[0], six[3])]
        begin += all_of(low, 1) + all_of(high, 1)
        rest = all_of(low, 4) + [self.cell(p, s, near, 1, r, 240) for (p, s), r in ((six[2], 1), (six[3], 2))]
        rest += all_of(near, 4) + all_of(high, 1, repeat=1)
        for cell in begin:
            self.safely(self.serve, cell, self.end - (60 if self.tiny else 130))
        for n in (8, 24, 48):
            self.safely(self.closed, n, 60, "vllm_v1", "calibration-later")
        self.safely(self.adapter, self.end - 110, 3, 200 if self.tiny else 700)
        self.mark("go-b")
        self.wait(("b-done",), self.end - 25)
        for cell in rest:
            self.safely(self.serve, cell, self.end - 3)

    def second(self) -> None:
        if not self.wait(("go-b",), self.end - 40):
            return
        limit = min(self.end - 2, self.now() + 78)
        self.profile()
        knee = self.knee([40, 80] if self.tiny else list(range(8, 41, 2)))
        for share in (0.8, 0.5, 1.1):
            for policy, slo in (("vllm-v1", TIGHT), ("neustream-llm", LOOSE)):
                self.safely(self.serve, self.cell(policy, slo, share * knee, 1, 0, 100), limit)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=("a", "b"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    pair = Pair(parser.parse_args())
    try:
        pair.go()
    except BaseException:
        pair.say("DIED", traceback.format_exc()[-3000:])
    finally:
        pair.mark(f"{pair.name}-done")
        sys.stdout.flush()
        os._exit(0)  # vLLM's own shutdown may hang


if __name__ == "__main__":
    main()
