"""Step times of a language model on vLLM by what the steps compute: a grid to make a profile of, and blind traffic.

::

    steps_campaign.py run FOLDER --model llama-3.1-8b --seconds 345 --grid 165 [--after FILE] [--tiny]

One process for each model: vLLM as it is by default (torch.compile, its own CUDA graphs, asynchronous scheduling)
but without prefix caching. Round by round it makes the steps of `servetwin.real.vllm.profiling.step_cells` for *grid*
seconds (the first round whole, in the time that there is), and after the first round serves requests as they come,
under several policies, budgets and loads: the steps of that traffic are for judging only. All is written as it
comes, a part at a time, into ``FOLDER/steps-MODEL.npz``; a failure of one part ends no more than itself, and the
process ends by itself after *seconds*. With `--after` it imports everything and then waits for that file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Load:
    """Requests that come at *rate* a second for *seconds*: lengths are lognormal, given by median and 90th
    percentile, prompts up to *longest*. *policy* None: vLLM decides. *budget* is that of tokens a step."""

    policy: str | None
    params: dict[str, Any] | None
    budget: int
    rate: float
    cv: float
    seconds: float
    prompt: tuple[int, int] = (200, 800)
    output: tuple[int, int] = (90, 220)
    longest: int = 8000


#: Loads by model.
LOADS: dict[str, tuple[Load, ...]] = {
    "llama-3.1-8b": (
        Load(None, None, 2048, 25, 1, 9),
        Load(None, None, 8192, 55, 1, 11),
        Load("sarathi", {"chunk": 512}, 8192, 30, 1, 10),
        Load("vllm", None, 8192, 40, 1, 9),
        Load(None, None, 2048, 45, 4, 10),
        Load(None, None, 2048, 9, 1, 9, prompt=(2000, 6000), output=(30, 80)),
        Load(None, None, 512, 22, 1, 8),
        Load(None, None, 8192, 45, 1, 14, prompt=(100, 300), output=(400, 1000)),
        Load(None, None, 8192, 220, 1, 8, prompt=(60, 200), output=(250, 500), longest=2000),
        Load("vllm", None, 8192, 12, 1, 7, prompt=(1500, 5000), output=(50, 120)),
    ),
    "opt-13b": (
        Load(None, None, 2048, 16, 1, 8, longest=1700),
        Load("sarathi", {"chunk": 512}, 8192, 20, 1, 8, longest=1700),
        Load("vllm", None, 8192, 16, 1, 8, longest=1700),
        Load(None, None, 8192, 26, 1, 9, longest=1700),
        Load(None, None, 512, 12, 4, 7, longest=1700),
        Load(None, None, 8192, 60, 1, 8, prompt=(50, 150), output=(150, 300), longest=500),
    ),
    "tiny-llama": (
        Load(None, None, 256, 8, 1, 3, longest=400),
        Load("sarathi", {"chunk": 64}, 256, 8, 4, 3, longest=300),
    ),
}


class Campaign:
    """One engine, and all that is done with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.model, self.end, self.grid = args.model, args.seconds, args.grid
        self.folder: Path = args.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / f"steps-{self.model}.npz"
        self.parts = 0
        self.rng = random.Random(args.seed)
        self.writing = threading.Lock()

    def now(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        return float(self.end - self.now())

    def say(self, *words: object) -> None:
        line = f"{self.now():7.1f} {self.model} " + " ".join(map(str, words))
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def safely(self, what: Callable[..., Any], *args: Any) -> Any:
        """What goes wrong in one part must not end the others."""
        try:
            return what(*args)
        except Exception:
            self.say("FAILED", getattr(what, "__name__", what), traceback.format_exc()[-1800:])

    def watch(self) -> None:
        """End the process if it is still there well after its time."""

        def ring() -> None:
            time.sleep(max(0.0, self.left() + 6))
            self.say("OUT OF TIME")
            self.leave(3)

        threading.Thread(target=ring, daemon=True).start()

    def leave(self, code: int) -> None:
        self.writing.acquire(timeout=20)
        self.say("ended with", code)
        sys.stdout.flush()
        os._exit(code)

    def keep(self, kind: str, info: dict[str, Any], played: Any) -> None:
        """Append the steps of *played* to the file; times in microseconds since the part began."""
        steps, launches = played.steps, played.launches
        at = f"{self.parts:03d}-{kind}"
        self.parts += 1
        micro = lambda values: np.array([round(v * 1e6) for v in values], dtype=np.int64)  # noqa: E731
        chunks = [(i, n, c) for i, s in enumerate(steps) for _, n, c in s.prefill]
        arrays = {
            "start": micro([s.start for s in steps]),
            "scheduled": micro([s.scheduled for s in steps]),
            "after": micro([s.after for s in steps]),
            "end": micro([s.end for s in steps]),
            "running": np.array([(s.waiting, s.running) for s in steps], dtype=np.int32).reshape(-1, 2),
            "chunks": np.array(chunks, dtype=np.int32).reshape(-1, 3),
            "decode": np.array([s.decode for s in steps], dtype=np.int32),
            "contexts": np.array([c for s in steps for c in sorted(s.contexts)], dtype=np.int32),
            "launch": np.array(
                [(x.launched, x.sampled, x.device, x.idle) for x in launches], dtype=np.float32
            ).reshape(-1, 4),
            "info": np.frombuffer(json.dumps(info).encode(), dtype=np.uint8),
        }
        with self.writing, zipfile.ZipFile(self.file, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                with archive.open(f"{at}/{name}.npy", "w") as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)

    # -- parts --------------------------------------------------------------------------------------------

    def start(self, tiny: bool) -> None:
        from servetwin.real.vllm.engine import EngineOptions, VllmEngine
        from servetwin.real.vllm.profiling.compositions import Player
        from servetwin.real.vllm.profiling.step_cells import Limits, cells_for

        if tiny:
            options = EngineOptions(
                model=self.model, kv_bytes=64 << 20, max_sequences=64, max_batched_tokens=1024, asynchronous=True
            )
        else:
            options = EngineOptions(
                model=self.model,
                dtype="float16" if self.model.startswith("opt") else "bfloat16",
                max_model_len=2048 if self.model.startswith("opt") else 16384,
                max_batched_tokens=8192,
                max_sequences=1024,
                gpu_memory_utilization=0.92,
                compiled=True,
                asynchronous=True,
            )
        self.engine = VllmEngine(options)
        compilation = self.engine.engine.vllm_config.compilation_config
        self.graphs = tuple(compilation.cudagraph_capture_sizes or ())
        self.about = {**self.engine.describe(), "graphs": self.graphs, "mode": str(compilation.cudagraph_mode)}
        self.say(json.dumps(self.about))
        self.player = Player(self.engine, watch=True)
        self.limits = Limits(
            options.max_batched_tokens, options.max_sequences, options.max_model_len, self.player.room
        )
        self.cells = cells_for(self.graphs, self.limits)
        self.say(self.cells)

    def check(self) -> None:
        """That steps have the composition that they were asked to have."""
        from servetwin.real.vllm.profiling.compositions import Beat, Part

        beats = (Beat((), 0, 2), Beat(((40, 0), (16, 500)), 0, 2), Beat((), 1, 2), Beat((), 1, 2))
        for _ in range(3):  # the first of everything is slow
            played = self.player.play(Part("check", (100, 200, 300), beats))
        found = [([(n, c) for _, n, c in s.prefill], sorted(s.contexts)) for s in played.steps]
        wanted = [([], [100, 200]), ([(40, 0), (16, 500)], [101, 201]), ([], [202, 300]), ([], [203, 301])]
        self.say("as asked" if found == wanted else f"NOT AS ASKED: {found}")

    def round(self, number: int, until: float) -> None:
        from servetwin.real.vllm.profiling.step_cells import parts_of_round

        for part in parts_of_round(number, self.cells, self.limits, self.rng):
            if self.now() < until:
                self.safely(self.part, part)

    def part(self, part: Any) -> None:
        begun = self.now()
        played = self.player.play(part, self.began + self.end - 3)
        took = self.now() - begun
        busy = sum(s.end - s.began for s in played.steps)
        asked = [(beat.chunks, beat.size) for beat in part.beats][: len(played.steps)]
        made = [(tuple((n, c) for _, n, c in s.prefill), s.decode) for s in played.steps]
        other = sum(a != b for a, b in zip(asked, made, strict=False))
        self.keep(part.kind, {"pool": len(part.pool), "began": begun, "other": other}, played)
        more = f", {other} NOT AS ASKED" if other else ""
        self.say(part.kind, len(part.pool), len(played.steps), f"steps{more}, {busy:.2f} of {took:.2f} s")

    def load(self, load: Load) -> None:
        from servetwin.real.vllm.plan import Planned
        from servetwin.real.vllm.profiling.compositions import Played
        from servetwin.real.vllm.scheduler import Settings

        scheduler, longest = self.engine.scheduler, self.engine.options.max_model_len
        begun, now, planned = self.now(), 0.0, []
        while now < load.seconds:
            prompt = max(4, min(self.drawn(*load.prompt), load.longest))
            output = max(2, min(self.drawn(*load.output), longest - prompt - 1))
            planned.append(Planned(len(planned), now, prompt, output))
            now += self.rng.gammavariate(1 / load.cv**2, load.cv**2 / load.rate)
        most = scheduler.max_num_scheduled_tokens
        scheduler.max_num_scheduled_tokens = min(load.budget, most)
        scheduler.keep_contexts = True
        if self.player.clock is not None:
            self.player.clock.take()
        try:
            settings = Settings(policy=load.policy, params=load.params)
            run = self.engine.serve(planned, settings, stop_after=0.3)
        finally:
            scheduler.max_num_scheduled_tokens = most
            scheduler.keep_contexts = False
        launches = self.player.clock.take() if self.player.clock is not None else []
        played = Played("traffic", begun, run.steps, launches[: len(run.steps)])
        self.keep("traffic", {**dataclasses.asdict(load), "began": begun, "launches": len(launches)}, played)
        sizes = [s.decode for s in run.steps] or [0]
        took = self.now() - begun
        self.say(
            "traffic", load, len(run.steps), "steps, batch", f"{np.mean(sizes):.0f} to {max(sizes)}, {took:.1f} s"
        )

    def drawn(self, median: int, high: int) -> int:
        """A length whose median and 90th percentile are these."""
        return round(median * (high / median) ** (self.rng.gauss(0.0, 1.0) / 1.2816))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="llama-3.1-8b", choices=list(LOADS))
    parser.add_argument("--seconds", type=float, required=True, help="from the start of this process, or of --after")
    parser.add_argument("--grid", type=float, required=True, help="seconds for the grid")
    parser.add_argument("--after", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="on a CPU")
    args = parser.parse_args(argv)

    from servetwin.real.vllm.engine import prepare_environment, undisturbed

    prepare_environment()
    import vllm.v1.engine.llm_engine  # noqa: F401

    if args.tiny:
        import ahead

        ahead.force()
    while args.after is not None and not args.after.exists():
        time.sleep(0.1)
    campaign = Campaign(args)
    campaign.watch()
    campaign.say("at", time.strftime("%H:%M:%S"), f"{time.time():.3f} and {time.monotonic():.3f}")
    if campaign.safely(campaign.start, args.tiny) is None and not hasattr(campaign, "player"):
        campaign.leave(1)
    campaign.safely(campaign.check)
    loads = list(LOADS[args.model])
    lasting = sum(load.seconds + 1.0 for load in loads)
    with undisturbed():
        spent, number = 0.0, 0
        while True:
            begun = campaign.now()
            campaign.safely(campaign.round, number, campaign.end - (lasting if number == 0 else 0.0) - 4)
            spent += campaign.now() - begun
            if number == 0:
                for load in loads:
                    if campaign.left() > load.seconds + 6:
                        campaign.safely(campaign.load, load)
            number += 1
            if campaign.left() < 8 or spent > args.grid:
                break
    campaign.say("over", number, "rounds")
    campaign.leave(0)


if __name__ == "__main__":
    main()
