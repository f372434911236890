"""A language model under asynchronous scheduling: its profile, runs around its knee, and what the adapter costs.

::

    async_campaign.py run FOLDER --seconds N [--model opt-13b] [--tensor-parallel 1] [--smoke | --tiny]
    async_campaign.py run FOLDER/K --seconds N --shard K/4                    # one of four GPUs, longer runs
    async_campaign.py pack FOLDER... FILE.json.gz --name h100/opt-13b-async   # what was run, compactly
    async_campaign.py profile FOLDER FILE.yaml --name h100/opt-13b-async --when 2026-11-27

One process. First the profile, in rotation (`servetwin.real.vllm.profiling.measuring.async_steps`). Rates are shares
of the knees, one for each SLO, that the simulation shows with it. Then runs, what matters most first: each policy at
three rates about either knee, repeats of those that came out least certain, burstier arrivals, and between them
vLLM's own scheduler and ours in turn on the same saturated engine. All is written as it comes (``runs.jsonl.gz``:
every step, every token's time, the GPU time of each CUDA graph where this process launches it, and how often the
machine stalled the process), nothing is begun that would not end in time, and what fails ends no more than itself. At
the very end there is a file ``done``. `--smoke` shows in a minute or two that all parts work, `--tiny` does so on a
CPU.

With `--shard`, several processes share the work, each with a GPU and a profile of its own: all policies of a rate,
a cv and an SLO go to one of them, the knees are those that the first one finds (``knees.json`` in the folder above),
runs last as long as `LONG` says, and one run (`EVERYWHERE`) is made by all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
import os
import platform
import random
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import campaign
import numpy as np
import yaml
from async_plan import (
    AROUND,
    EVENTS,
    EVERYWHERE,
    EVERYWHERE_LASTING,
    LASTING,
    LONG,
    LOOSE,
    OUTPUT,
    SHARES,
    SLOS,
    TIGHT,
    Shard,
    plan_of,
)
from meanwhile import against, machine, since, stalls
from servetwin.core.llm import CumulativeSLO, EngineLimits
from servetwin.experiments.validation.replay.llm import MeasuredRun, Sent, host_of, replay, score, slo_of
from servetwin.profiles import Profile, load
from servetwin.profiles.llm.recent_load import recent_load_of
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.real.vllm.engine import VllmEngine, prepare_environment
from servetwin.real.vllm.plan import Planned
from servetwin.real.vllm.profiling.fitting.async_fit import begins
from servetwin.real.vllm.profiling.measuring.async_steps import rotate
from servetwin.real.vllm.profiling.profile_content import profile_content
from servetwin.sim.measured import stalls_of


class Campaign:
    """One engine, and all that is done with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.folder, self.end, self.tiny, self.smoke = args.folder, args.seconds, args.tiny, args.smoke
        self.plan = plan_of(args.model, args.tensor_parallel, args.smoke, args.tiny)
        self.shard: Shard | None = args.shard
        self.lasting: float = args.lasting
        self.replays: list[tuple[float, Any, Any]] = []
        self.spare: list[Any] = []  # pairs of events
        self.shares: list[tuple[float, dict[str, Any]]] = []  # of requests on time, by run
        self.made: set[str] = set()  # runs
        self.requests = self.plan.requests[0]
        self.writing = threading.Lock()
        self.engine: VllmEngine
        self.read: Profile
        self.table: TokenTable
        self.solo: tuple[float, float]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "done").unlink(missing_ok=True)
        runs = self.folder / "runs.jsonl.gz"
        if runs.exists():  # of another process: the two would be read as one
            runs.replace(self.folder / f"before-{time.time():.0f}.jsonl.gz")

    # -- time and notes -----------------------------------------------------------------------------------

    def now(self) -> float:
        return time.monotonic() - self.began

    def say(self, *words: object) -> None:
        line = f"{self.now():7.1f} " + " ".join(map(str, words))
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def keep(self, kind: str, **what: Any) -> None:
        line = json.dumps({"kind": kind, **what}, separators=(",", ":")) + "\n"
        with self.writing, gzip.open(self.folder / "runs.jsonl.gz", "at", compresslevel=3) as file:
            file.write(line)

    def leave(self, code: int) -> None:
        """End the process here and now, since vLLM's own shutdown may hang; nothing is left half written."""
        self.writing.acquire(timeout=20)
        (self.folder / "done").write_text(f"{code} after {self.now():.1f} s\n")
        sys.stdout.flush()
        os._exit(code)

    def safely(self, what: Callable[..., Any], *args: Any) -> Any:
        """What goes wrong in one part must not end the others."""
        try:
            return what(*args)
        except Exception:
            self.say("FAILED", what.__name__, traceback.format_exc()[-2500:])

    def watch(self) -> None:
        """End the process if it is still there well after its time: something hangs, and all is written."""

        def ring() -> None:
            time.sleep(max(0.0, self.end + 8 - self.now()))
            self.say("OUT OF TIME")
            self.leave(3)

        threading.Thread(target=ring, daemon=True).start()

    # -- the GPU's part of a step -------------------------------------------------------------------------

    def spy(self) -> None:
        """Have an event before and after each CUDA graph that this process launches.

        The events are made beforehand and used again: making them stalls the host now and then.
        """
        import torch

        if not torch.cuda.is_available() or self.plan.options.tensor_parallel > 1:
            return
        plain = torch.cuda.CUDAGraph.replay
        self.spare = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(EVENTS)]
        for pair in self.spare:
            for event in pair:
                event.record()
        torch.cuda.synchronize()

        def spied(graph: Any) -> None:
            if not self.spare:
                plain(graph)
                return
            before, after = self.spare.pop()
            at = time.monotonic()
            before.record()
            plain(graph)
            after.record()
            self.replays.append((at, before, after))

        torch.cuda.CUDAGraph.replay = spied

    def gpu_times(self) -> list[list[float]]:
        """[when launched, milliseconds, milliseconds since the one before] of the graphs since the last call."""
        if not self.replays:
            return []
        import torch

        torch.cuda.synchronize()
        zero = self.engine.scheduler.zero
        out, last = [], None
        for at, before, after in self.replays:
            gap = 0.0 if last is None else last.elapsed_time(before)
            out.append([round(at - zero, 6), round(before.elapsed_time(after), 4), round(gap, 4)])
            last = after
        self.forget()
        return out

    def forget(self) -> None:
        """The events since the last call are free again."""
        self.spare += [(before, after) for _, before, after in self.replays]
        self.replays.clear()

    # -- parts --------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.engine = VllmEngine(self.plan.options)
        described = self.engine.describe()
        described |= {"python": platform.python_version(), "when": datetime.now().isoformat(" ", "seconds")}
        described["command"] = shlex.join(sys.argv)
        self.described = described
        self.keep("engine", **described, rotation=dataclasses.asdict(self.plan.rotation))
        self.say(json.dumps(described))
        self.spy()

    def profile(self) -> None:
        before = machine()
        measured = self.safely(self.measure) or []
        told = since(before)
        path = self.folder / "profile.yaml"
        named = str(path) if self.safely(self.fold, measured, path) else self.plan.earlier
        if named is None:
            raise RuntimeError("there is no profile, and none of an earlier day")
        self.say("the profile is", named)
        self.read = read = load(named)
        self.table = read.tokens("measured", hold=True)
        solo = read.token_data.solo
        assert solo is not None
        self.solo = (solo.d0, solo.d1)
        gpu = self.safely(self.gpu_times) or []
        self.keep("replays", what="profile", gpu=gpu, machine=told)
        self.say("the machine meanwhile", told)
        self.safely(self.tell, measured, gpu)

    def measure(self) -> list[Any]:
        measured = rotate(self.engine, self.plan.rotation, self.plan.profile, lambda what: self.say("profile:", what))
        for one in measured:
            steps = [campaign._flat(step) for step in one.steps]
            self.keep("profile", what=one.kind, steps=steps, intake=[[n, round(s, 6)] for n, s in one.intake])
        return measured

    def fold(self, measured: list[Any], path: Path) -> bool:
        """Make a profile file of what was measured; whether it has all that is needed."""
        content = profile_content(
            measured,
            self.described,
            self.plan.rotation,
            name=f"here/{self.plan.options.model}",
            when=self.described["when"],
            command=self.described["command"],
            source="real/vllm/profiling/measuring/async_steps.py",
        )
        path.write_text(yaml.safe_dump(content, sort_keys=False, width=118, default_flow_style=None))
        read = load(str(path))
        return bool(read.tokens("measured", hold=True)) and read.token_data.solo is not None

    def tell(self, measured: list[Any], gpu: list[list[float]]) -> None:
        """What is to be known of the profile at once."""
        table, costs = self.table, self.read.costs
        dry = {
            k: [len(v), *np.round(1e3 * np.quantile(v, (0.1, 0.5, 0.9)), 2).tolist()]
            for k, v in begins(measured, table).items()
            if v
        }
        self.say("solo", self.solo, "mixed", table.model.mixed)
        self.say("prefill", [round(table.prefill(n) * 1e3, 2) for n in (32, 128, 256, 512, 1024)])
        self.say("decode", [round(table.decode(b, 160 * b) * 1e3, 2) for b in (1, 8, 16, 32, 64, 96)])
        self.say("begins later by, ms (10, 50, 90 %)", dry, "between", costs["step.between"].by_batch)
        self.say("intake", costs["engine.intake"].value, "steps", sum(len(one.steps) for one in measured))
        for kind in dict.fromkeys(one.kind for one in measured):
            steps = sorted((s for one in measured if one.kind == kind for s in one.steps), key=lambda s: s.start)
            self.say(kind, "stalls", stalls(steps, gpu, table))
        for kind in ("decode", "mixed", "prefill"):
            told = [against(one.steps, table) for one in measured if one.kind == kind]
            self.say(kind, "against the table", told[:3])
        for kind in ("prefill", "decode"):
            if f"{kind}.ratio" in costs:
                self.say(kind, "over the table", costs[f"{kind}.ratio"].quantiles)

    def slo(self, text: str) -> CumulativeSLO:
        return slo_of(self.table, text, self.solo)

    def simulated(self, cell: dict[str, Any]) -> tuple[MeasuredRun, dict[int, list[float]]]:
        """*cell* as a run, and when its tokens come out in simulation."""
        engine, options = self.engine.scheduler, self.plan.options
        limits = EngineLimits(
            blocks=engine.blocks,
            block_size=engine.block_size,
            max_batched_tokens=options.max_batched_tokens,
            max_sequences=options.max_sequences,
            whole_prompt=True,
        )
        sent = tuple(Sent(i, a, int(p), int(n), OUTPUT[1], "", ()) for i, (a, p, n) in enumerate(cell["requests"]))
        run = MeasuredRun("", cell["policy"], cell["slo"], cell["rate"], cell["cv"], 0, 0, 0.0, sent)
        still = stalls_of(self.read, 0, "engine")
        recent, host = recent_load_of(self.read.costs), host_of(self.read)
        return run, replay(run, limits, self.table, self.slo(cell["slo"]), host=host, stalls=still, pace=recent)[0]

    def lasts(self, cell: dict[str, Any]) -> float:
        """Seconds that *cell* will take."""
        run, times = self.simulated(cell)
        return max(run.requests[-1].arrival, *(ends[-1] for ends in times.values() if ends)) + AROUND

    def knees(self) -> dict[str, float]:
        """By SLO the largest rate at which `vllm-v1` has 90 % of requests on time in simulation, with each of two
        seeds. It does not look at SLOs, so one simulation scores for all."""
        found: dict[str, float] = {}
        for rate in self.plan.rates:
            shares: dict[str, list[float]] = {slo: [] for slo in SLOS}
            for seed in (10, 11):
                wanted = campaign.requests(rate, 1, seed, 3 * self.plan.requests[0], OUTPUT)
                run, times = self.simulated(
                    {"policy": "vllm-v1", "slo": TIGHT, "rate": rate, "cv": 1, "requests": wanted}
                )
                for slo, of in shares.items():
                    of.append(round(score(run, times, self.slo(slo)).good / len(wanted), 3))
            self.say("simulated", rate, shares)
            found |= {slo: rate for slo, of in shares.items() if min(of) >= 0.9}
            if max(max(of) for of in shares.values()) < 0.5:
                break
        for slo in SLOS:
            if slo not in found:
                self.say("NO RATE HOLDS 90 % under", slo)
            elif found[slo] == self.plan.rates[-1]:
                self.say("THE LARGEST RATE holds 90 % under", slo)
        return {slo: found.get(slo, self.plan.rates[0]) for slo in SLOS}

    def serve(self, cell: dict[str, Any], limit: float) -> None:
        from servetwin.real.vllm.scheduler import Estimates, Settings

        planned = [Planned(i, a, int(p), int(n), cell["limit"]) for i, (a, p, n) in enumerate(cell["requests"])]
        if cell["id"] in self.made:
            return
        if self.now() + self.lasts(cell) + 0.5 > limit:
            self.say("no time for", cell["id"])
            return
        self.forget()
        slo, before = self.slo(cell["slo"]), machine()
        made = self.engine.serve(
            planned,
            Settings(policy=campaign.POLICIES.get(cell["policy"])),
            estimates=Estimates(self.table.prefill, self.table.decode, slo),
            stop_after=15.0,
        )
        told = since(before)
        rows = [
            [r.id, r.arrival, r.prompt, r.output, r.queued, r.outcome, r.preemptions, [round(x, 6) for x in r.times]]
            for r in made.requests
        ]
        steps = [campaign._flat(s) for s in made.steps]
        late = round(1e3 * max(made.lateness), 3)
        gpu = self.safely(self.gpu_times) or []
        told |= self.safely(stalls, made.steps, gpu, self.table) or {}
        facts = {k: v for k, v in cell.items() if k != "requests"} | {"machine": told}
        self.keep("run", **facts, requests=rows, steps=steps, late_ms=late, intake=made.intake, gpu=gpu)
        self.made.add(cell["id"])
        sent = tuple(
            Sent(r.id, r.arrival, r.prompt, r.output, cell["limit"], r.outcome, tuple(r.times)) for r in made.requests
        )
        run = MeasuredRun("", cell["policy"], cell["slo"], cell["rate"], cell["cv"], 0, 0, 0.0, sent)
        met = {}
        for text in SLOS if cell["policy"] in campaign.BLIND else (cell["slo"],):
            met[text] = score(run, {r.id: r.times for r in sent}, self.slo(text)).good
            self.shares.append((met[text] / len(sent), cell))
        ahead = sum(s.behind for s in made.steps) / max(1, len(made.steps))
        mean = [float(np.mean(x)) if len(x) else 0.0 for x in ([s.seconds for s in made.steps], [g[1] for g in gpu])]
        self.say(
            f"{cell['id']} met {met} of {len(sent)}, steps {len(steps)}, {100 * ahead:.0f} % decided ahead, "
            f"{1e3 * mean[0]:.2f} ms each, of which graphs {mean[1]:.2f}, late {late} ms, "
            f"stalls {told}, "
            f"against the table {against(made.steps, self.table)}, "
            f"outcomes { {o: sum(r.outcome == o for r in made.requests) for o in ('finished', 'dropped', 'failed')} }"
        )

    def warm_up(self) -> None:
        """A second under two policies, which is not kept: the first steps of a run of its own kind come slower."""
        from servetwin.real.vllm.scheduler import Settings

        for name in ("vllm_v1", "vllm"):
            wanted = campaign.requests(40, 1, 99, 40, OUTPUT)
            planned = [Planned(i, a, int(p), int(n), OUTPUT[1]) for i, (a, p, n) in enumerate(wanted)]
            self.engine.serve(planned, Settings(policy=name), stop_after=15.0)
        self.forget()

    def adapter(self, limit: float, pairs: int, count: int) -> None:
        """vLLM's own scheduler, and ours with the policy that decides as it does: the same requests, all at once."""
        from servetwin.real.vllm.internals import own_class
        from servetwin.real.vllm.scheduler import Settings

        scheduler, rng = self.engine.scheduler, random.Random(7)
        ours = type(scheduler)
        lengths = [(campaign.PROMPTS[i % 100], rng.randint(*OUTPUT)) for i in range(count)]
        tokens = sum(n for _, n in lengths)
        for turn in range(2 * pairs):
            own = turn % 4 in (0, 3)
            if self.now() + 8 > limit:
                self.say("no time for the adapter", turn)
                return
            self.engine.empty()
            self.forget()
            scheduler.install(Settings(policy="vllm_v1"))
            scheduler.keep_log = False
            if own:  # the very object, without anything of ours
                scheduler.__class__ = own_class(scheduler)
            try:
                with self.engine.undisturbed():
                    for i, (prompt, output) in enumerate(lengths):
                        self.engine.add(Planned(i + 1, 0.0, prompt, output), 0.0)
                    ends = [time.monotonic()]
                    while self.engine.engine.has_unfinished_requests():
                        self.engine.engine.step()
                        ends.append(time.monotonic())
                self.engine.empty()
            finally:
                scheduler.__class__ = ours
                scheduler.tasks.clear()
            seconds, steps = ends[-1] - ends[0], len(ends) - 1
            gpu = sum(g[1] for g in self.safely(self.gpu_times) or ())
            which = "own" if own else "ours"
            self.keep("adapter", which=which, turn=turn, seconds=seconds, steps=steps, tokens=tokens, gpu_ms=gpu)
            self.say(
                "adapter", which, round(tokens / seconds, 1), "tokens/s", steps, "calls", round(gpu), "ms in graphs"
            )

    # -- in order -----------------------------------------------------------------------------------------

    def cell(
        self, policy: str, slo: str, rate: float, cv: float, repeat: int = 0, seconds: float | None = None
    ) -> dict[str, Any]:
        rate = round(rate, 1)  # of repeats too, which come with the rate that their run was named for
        count = min(max(self.requests, int(LASTING * rate)), 3 * self.requests)
        if self.shard is not None and not self.tiny:
            count = int(self.lasting * (seconds or LONG[slo, cv]) * rate)
        return campaign.planned(policy, slo, rate, cv, int(10 * cv), repeat, count, OUTPUT)

    def sharded(self, knees: dict[str, float]) -> list[list[dict[str, Any]]]:
        """The groups of runs of this shard."""
        assert self.shard is not None
        policy, slo, share, cv = EVERYWHERE
        own = self.cell(policy, slo, share * knees[slo], cv, self.shard.k, EVERYWHERE_LASTING)
        groups: dict[Any, list[dict[str, Any]]] = {}
        for cell in itertools.chain(*self.cells(knees)):
            if any(cell[what] != own[what] for what in ("policy", "slo", "rate", "cv")):
                groups.setdefault((cell["slo"], cell["rate"], cell["cv"]), []).append(cell)
        mine = [*self.shard.groups(groups), [own]]
        self.say("mine are", [[cell["id"] for cell in group] for group in mine])
        return mine

    def cells(self, knees: dict[str, float]) -> tuple[list[dict[str, Any]], ...]:
        """Runs around the *knees*: those that matter most, the ones that come after them, and what may be left out.
        Within each what matters most comes first."""

        def row(policies: Iterable[str], slos: Iterable[str], which: Iterable[int], cv: int) -> list[Any]:
            return [self.cell(p, o, SHARES[o, cv][i] * knees[o], cv) for i in which for o in slos for p in policies]

        if self.plan.small:
            two, three = ("vllm-v1", "neustream-llm"), (0, 1, 2)
            first, then = row(two, [LOOSE], three, 1), row(two[1:], [TIGHT], three, 1)
            return first, then, row(two[:1], [TIGHT], three, 1) + row(two, [LOOSE], [0], 4)
        policies = campaign.POLICIES
        return row(policies, SLOS, (0, 1, 2), 1), row(policies, SLOS, [0], 4), row(policies, SLOS, [1], 4)

    def fitting(self, knees: dict[str, float], repeats: int, kept: float) -> tuple[list[dict[str, Any]], ...]:
        """`cells`, with as many requests each as time allows."""
        for count in self.plan.requests:
            self.requests = count
            parts = self.cells(knees)
            first, then, rest = (sum(self.lasts(c) for c in {c["id"]: c for c in part}.values()) for part in parts)
            again = repeats * first / len(parts[0])
            left = self.end - self.now()
            numbers = "{} runs {:.0f} s, then {} {:.0f} s and after the adapter {} {:.0f} s".format(
                *(x for part, seconds in zip(parts, (first, then, rest), strict=True) for x in (len(part), seconds))
            )
            self.say(f"{count} requests a run: {numbers}; {repeats} repeats {again:.0f} s, adapter {kept:.0f} s")
            self.say(f"in all {first + then + again + kept:.0f} and {rest:.0f} s more; there are {left:.0f} s")
            if first + kept + (0 if self.plan.small else then + again) <= left:
                break
        return parts

    def uncertain(self, most: int, repeat: int = 1) -> list[dict[str, Any]]:
        """Runs again whose share of requests on time was nearest to a half: there chance moves most. By turns of
        those at the rates of either SLO."""
        chosen: dict[str, dict[str, Any]] = {}
        for _, cell in sorted(self.shares, key=lambda s: abs(s[0] - 0.5)):
            if cell["repeat"] == 0:
                again = self.cell(cell["policy"], cell["slo"], cell["rate"], cell["cv"], repeat)
                chosen.setdefault(again["id"], again)
        of = [[c for c in chosen.values() if c["slo"] == slo and c["id"] not in self.made] for slo in SLOS]
        return [c for pair in itertools.zip_longest(*of) for c in pair if c is not None][:most]

    def go(self) -> None:
        self.watch()
        self.start()
        self.profile()
        knees = self.knees()
        if self.shard is not None:
            knees = self.shard.agreed(self.folder, knees)
        self.say("knees", knees)
        self.safely(self.warm_up)
        if self.smoke:
            for policy in campaign.POLICIES:
                slo = TIGHT if policy in campaign.BLIND else LOOSE
                self.safely(self.serve, self.cell(policy, slo, 24, 1), self.end)
            self.safely(self.adapter, self.end, 1, 100)
            return
        small = self.plan.small
        turns, repeats = (1, 2) if small else (2, 6)
        kept = 5 if self.tiny else 14 * turns  # seconds for the adapter

        def serve(cells: list[dict[str, Any]], until: float) -> None:
            for cell in cells:
                self.safely(self.serve, cell, until)

        if self.shard is not None:
            serve(list(itertools.chain(*self.sharded(knees))), self.end - 2)
            self.safely(self.adapter, self.end - 2, turns, 100 if self.tiny else 500)
            for again in (0, 1):  # their numbers are none that EVERYWHERE has
                serve(self.uncertain(2 * repeats, self.shard.of + again), self.end - 2)
            self.say("done")
            return
        first, then, rest = self.fitting(knees, repeats, kept)
        serve(first, self.end - kept)
        if small:
            serve(then, self.end - kept)
        serve(self.uncertain(repeats), self.end - kept)
        if not small:
            serve(then, self.end - kept)
        self.safely(self.adapter, self.end - 2, turns, 100 if self.tiny or small else 500)
        serve(rest, self.end - 2)
        for repeat in (1, 2):
            serve(self.uncertain(2 * repeats, repeat), self.end - 2)
        self.say("done")


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    go = commands.add_parser("run")
    go.add_argument("folder", type=Path)
    go.add_argument("--seconds", type=float, required=True)
    go.add_argument("--model", default="opt-13b")
    go.add_argument("--tensor-parallel", type=int, default=1)
    go.add_argument("--smoke", action="store_true")
    go.add_argument("--tiny", action="store_true")
    go.add_argument("--shard", type=Shard.parse, help="which of how many processes this is, as 0/4")
    go.add_argument(
        "--lasting", type=float, default=1.0, help="how many times as long a shard's runs last as planned"
    )
    fold = commands.add_parser("pack")
    fold.add_argument("folders", type=Path, nargs="+")
    fold.add_argument("out", type=Path)
    fold.add_argument("--name", help="of the profile taken before")
    fold.add_argument("--first", action="store_true", help="the first run of each folder was made a part of profiles")
    table = commands.add_parser("profile")
    table.add_argument("folder", type=Path)
    table.add_argument("out", type=Path)
    table.add_argument("--name", required=True)
    table.add_argument("--when", required=True)
    table.add_argument(
        "--traffic", type=Path, nargs="*", default=(), help="folders whose first runs stand for traffic"
    )
    args = parser.parse_args()
    if args.command == "pack":
        campaign.pack(args.folders, args.out, args.name, args.first)
        return
    if args.command == "profile":
        command = "python tests/real/vllm/async_campaign.py run FOLDER"
        if args.traffic:
            command += (
                f"; for traffic stand the first runs of {len(args.traffic)} processes, each with a GPU of its own"
            )
        campaign.profile(args.folder, args.name, args.when, command, args.out, args.traffic)
        return
    # Several GPUs of one host: multicast memory stays off.
    os.environ.update(VLLM_ALLREDUCE_USE_SYMM_MEM="0", NCCL_NVLS_ENABLE="0")
    prepare_environment()
    if args.tiny:
        import ahead

        ahead.force()
    made = Campaign(args)
    try:
        made.go()
    except BaseException:
        made.say("DIED", traceback.format_exc()[-4000:])
    finally:
        made.leave(0)


if __name__ == "__main__":
    main()
