"""Runs on a real engine to hold against their simulation: `plan` here, `run` where the GPU is.

::

    campaign.py plan  PLAN.json                    # what to run: requests and all, so that nothing is drawn there
    campaign.py run   PLAN.json FOLDER --seconds N # one engine: its profile once, then the cells in order
    campaign.py pack  FOLDER FILE.json.gz          # what was run, compactly
    campaign.py profile FOLDER FILE.yaml --name h100/opt-13b-tp1 --when 2026-11-23

`run` writes as it goes and stops in time, so that a run that is cut off loses the cell in hand only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

#: Lengths in tokens of the 100 prompts of the NeuStream artifact's LLM experiments (as counted by us with OPT's
#: tokenizer), in order.
PROMPTS: tuple[int, ...] = (
    343,
    243,
    149,
    45,
    462,
    210,
    77,
    370,
    402,
    141,
    103,
    269,
    269,
    64,
    47,
    105,
    62,
    214,
    90,
    86,
    47,
    49,
    358,
    82,
    401,
    207,
    75,
    99,
    114,
    247,
    455,
    88,
    71,
    194,
    97,
    72,
    281,
    206,
    68,
    195,
    40,
    96,
    104,
    66,
    44,
    62,
    43,
    45,
    105,
    67,
    109,
    50,
    137,
    93,
    72,
    309,
    56,
    124,
    47,
    294,
    358,
    51,
    316,
    56,
    90,
    103,
    166,
    47,
    52,
    277,
    349,
    260,
    42,
    259,
    59,
    53,
    345,
    95,
    40,
    42,
    64,
    70,
    45,
    301,
    41,
    115,
    178,
    216,
    41,
    91,
    178,
    79,
    52,
    175,
    54,
    338,
    42,
    183,
    373,
    63,
)

POLICIES = {
    "vllm-v1": "vllm_v1",
    "vllm": "vllm",
    "neustream-llm": "neustream_llm",
    "edf-llm": "edf_llm",
}
#: Policies that never look at the SLO: one run of theirs scores for every SLO.
BLIND = ("vllm-v1", "vllm", "own")


def requests(rate: float, cv: float, seed: int, count: int, output: tuple[int, int]) -> list[list[float]]:
    """[arrival, prompt, output]: gamma gaps as in the artifact, its prompts, output lengths even in a range."""
    rng = np.random.RandomState(seed)
    gaps = rng.gamma(1.0 / cv**2, cv**2 / rate, count)
    gaps *= count / rate / gaps.sum()  # so that each seed has the rate that it is named for
    outputs = rng.randint(output[0], output[1] + 1, count)
    arrivals = np.cumsum(gaps) - gaps[0]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    return [[round(float(a), 6), p, int(n)] for a, p, n in zip(arrivals, prompts, outputs, strict=True)]


def planned(
    policy: str, slo: str, rate: float, cv: float, seed: int, repeat: int, count: int, output: tuple[int, int]
) -> dict[str, Any]:
    """One run of a plan; policies that do not read the SLO serve for every one."""
    return {
        "id": f"{policy}_{'any' if policy in BLIND else slo}_r{rate:g}_cv{cv:g}_s{seed}_{repeat}",
        "policy": policy,
        "slo": slo,
        "rate": rate,
        "cv": cv,
        "seed": seed,
        "repeat": repeat,
        "limit": output[1],
        "requests": requests(rate, cv, seed, count, output),
    }


def cells(
    rates: list[float], slos: list[str], cvs: list[float], seconds: float, least: int, output: tuple[int, int]
) -> list[dict[str, Any]]:
    """The grid, what matters most first."""
    out: list[dict[str, Any]] = []

    def add(policy: str, slo: str, rate: float, cv: float, seed: int, repeat: int = 0) -> None:
        count = max(least, int(rate * seconds) + (24 if least <= rate * seconds < 150 else 0))
        out.append(planned(policy, slo, rate, cv, seed, repeat, count, output))

    order = [rates[1], rates[2], rates[0]] if len(rates) == 3 else rates
    for cv in cvs:
        for rate in order:
            for slo in slos:
                for policy in POLICIES:
                    if policy not in BLIND or slo == slos[0]:
                        add(policy, slo, rate, cv, seed=int(10 * cv))
        if cv == cvs[0]:
            add("own", slos[0], rates[1], cv, seed=int(10 * cv))
            add("vllm-v1", slos[0], rates[1], cv, int(10 * cv), repeat=1)
            add("neustream-llm", slos[0], rates[1], cv, int(10 * cv), repeat=1)
    for policy in ("vllm-v1", "neustream-llm", "own"):
        add(policy, slos[0], rates[1], cvs[0], int(10 * cvs[0]), repeat=2)
    return out


def short(seconds: float, output: tuple[int, int]) -> list[dict[str, Any]]:
    """What fits into a minute or two, what matters most first."""
    a, b = "3+1.5", "5+2"
    wanted: list[tuple[str, str, float, float, int]] = []
    wanted += [(p, s, 24, 1, 0) for p, s in (("vllm-v1", a), ("vllm", a), ("neustream-llm", a), ("edf-llm", a))]
    wanted += [(p, b, 32, 1, 0) for p in ("neustream-llm", "edf-llm", "vllm-v1", "vllm")]
    wanted += [("neustream-llm", b, 24, 1, 0), ("edf-llm", b, 24, 1, 0)]
    wanted += [("vllm-v1", a, 24, 1, 1), ("neustream-llm", a, 24, 1, 1), ("own", a, 24, 1, 0)]
    wanted += [(p, a, 16, 1, 0) for p in ("vllm", "neustream-llm", "edf-llm", "vllm-v1")]
    wanted += [(p, b, 24, 4, 0) for p in ("vllm-v1", "vllm", "neustream-llm", "edf-llm")]
    wanted += [("own", a, 24, 1, 1), ("vllm-v1", a, 24, 1, 2)]
    out = []
    for policy, slo, rate, cv, repeat in wanted:
        seed = int(10 * cv)
        out.append(planned(policy, slo, rate, cv, seed, repeat, int(rate * seconds), output))
    return out


Say = Callable[..., None]
Keep = Callable[[dict[str, Any]], None]


def run(plan: dict[str, Any], folder: Path, seconds: float) -> None:
    """Profile the engine of *plan* and serve its cells, for so many *seconds*; what comes of it lies in *folder*."""
    began = time.monotonic()

    def say(*words: object) -> None:
        line = f"{time.monotonic() - began:7.1f} " + " ".join(map(str, words))
        print(line, flush=True)
        with (folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def keep(what: dict[str, Any]) -> None:
        with gzip.open(folder / "runs.jsonl.gz", "at", compresslevel=4) as file:
            file.write(json.dumps(what, separators=(",", ":")) + "\n")

    from servetwin.core.llm import CumulativeSLO
    from servetwin.real.vllm.engine import EngineOptions, VllmEngine
    from servetwin.real.vllm.plan import Planned
    from servetwin.real.vllm.scheduler import Estimates, Settings, slo_scales

    folder.mkdir(parents=True, exist_ok=True)
    options = EngineOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in plan["engine"].items()})
    engine = VllmEngine(options)
    table, solo = measured_table(engine, plan["grid"], folder, say, keep)
    for cell in plan["cells"]:
        planned = [Planned(i, a, int(p), int(n), cell["limit"]) for i, (a, p, n) in enumerate(cell["requests"])]
        expected = planned[-1].arrival + 2.0
        if time.monotonic() - began + expected > seconds:
            say("no time for", cell["id"])
            continue
        p, d = slo_scales(cell["slo"])
        slo = CumulativeSLO(p, d, solo["d0"], solo["d1"], table.prefill)
        estimates = Estimates(table.prefill, table.decode, slo)
        settings = Settings(policy=POLICIES.get(cell["policy"]), params=cell.get("params"))
        made = engine.serve(planned, settings, estimates=estimates, stop_after=20.0)
        keep(record_of(cell, made))
        say(cell["id"], *result_of(made, slo))
    say("done")


def measured_table(engine: Any, given: Any, folder: Path, say: Say, keep: Keep) -> tuple[Any, dict[str, float]]:
    """Measure the steps of *engine* on the grid that is *given*: its table, and seconds of a decode step alone."""
    from servetwin.profiles.llm.schema import TokenModel
    from servetwin.profiles.llm.step_table import TokenTable
    from servetwin.real.vllm.profiling.fitting.grid_fit import tokens_section
    from servetwin.real.vllm.profiling.measuring.step_grid import SMALL, Grid, measure

    described = {**engine.describe(), "python": platform.python_version()}
    say(json.dumps(described))
    grid = (
        SMALL if given == "small" else Grid(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    )
    measured = measure(engine, grid, lambda what: say("profile:", what))
    keep({"kind": "engine", **described})
    for one in measured:
        keep({"kind": "profile", "what": one.kind, "steps": [_flat(s) for s in one.steps], "intake": one.intake})
    section = tokens_section(measured, described, grid, "runs.jsonl.gz")
    (folder / "profile.json").write_text(json.dumps(section))
    tokens = section["tokens"]
    table, solo = TokenTable(TokenModel.model_validate(tokens["kinds"]["measured"]), hold=True), tokens["solo"]
    prefills = [round(table.prefill(n) * 1e3, 2) for n in (32, 128, 512, 1024)]
    decodes = [round(table.decode(b, 160 * b) * 1e3, 2) for b in (1, 8, 32, 64)]
    say("solo", solo["d0"], solo["d1"], "prefill", prefills, "decode", decodes)
    say("mixed", tokens["kinds"]["measured"]["mixed"])
    return table, solo


def record_of(cell: dict[str, Any], made: Any) -> dict[str, Any]:
    """What is kept of the run *made* of *cell*."""
    return {
        "kind": "run",
        **{k: v for k, v in cell.items() if k != "requests"},
        "requests": [
            [r.id, r.arrival, r.prompt, r.output, r.queued, r.outcome, r.preemptions, [round(t, 6) for t in r.times]]
            for r in made.requests
        ],
        "steps": [_flat(s) for s in made.steps],
        "late_ms": round(1e3 * max(made.lateness), 3),
        "intake": made.intake,
    }


def result_of(made: Any, slo: Any) -> Iterator[object]:
    """What is said of the run *made*: how many requests had all tokens in time, and what steps took."""

    def met(r: Any) -> bool:
        first = r.arrival + slo.prefill_scale * slo.alone(r.prompt)
        dues = [first + slo.decode_scale * slo.decode_alone(r.prompt, j) for j in range(len(r.times))]
        return r.outcome == "finished" and all(t <= due for t, due in zip(r.times, dues, strict=True))

    def mean(values: list[float], scale: float, digits: int | None) -> float:
        return round(scale * float(np.mean(values)), digits)

    yield from ("met", sum(map(met, made.requests)), "of", len(made.requests))
    yield {o: sum(r.outcome == o for r in made.requests) for o in ("finished", "dropped", "failed")}
    yield from ("ttft ms", mean([r.times[0] - r.arrival for r in made.requests if r.times], 1e3, 1))
    yield from ("steps", len(made.steps), "step ms", mean([s.end - s.start for s in made.steps], 1e3, 2))
    yield from ("decide us", mean([s.decided - s.start for s in made.steps], 1e6, None))
    yield from ("late ms", round(1e3 * max(made.lateness), 2))


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """What a campaign has written; *folder* may be the file itself. Of a process that was killed while it wrote, the
    last record is left out."""
    source = folder if folder.is_file() else folder / "runs.jsonl.gz"
    with gzip.open(source, "rt") as file, contextlib.suppress(EOFError):
        for line in file:
            yield json.loads(line)


def pack(folders: Sequence[Path], out: Path, name: str | None = None, first: bool = False) -> None:
    """What `servetwin.experiments.validation.replay.llm.read` reads: runs without their steps. Each of *folders*
    may be a file of `pair_campaign` or `async_campaign`, *name* is that of the profile taken before; where there
    are several, each with a GPU of its own, of the profiles ``name-0``, ``name-1`` and so on. With *first* the
    first run of each is marked as one that profiles were made of."""
    content: dict[str, Any] = {"profile": name, "engine": {}, "runs": []}
    for number, folder in enumerate(folders):
        own = name if len(folders) == 1 else f"{name}-{number}"
        engine, runs, adapter, machine = _packed(folder)
        if first:
            runs[0]["profiled"] = True
        if number == 0:
            content |= {"profile": own, "engine": engine}
        else:
            runs = [{"profile": own, **run} for run in runs]
        content["runs"] += runs
        if adapter:
            content["adapter"] = content.get("adapter", []) + adapter
        if machine:
            content["machine"] = content.get("machine", {}) | machine
    with gzip.GzipFile(out, "wb", compresslevel=9, mtime=0) as raw:
        raw.write(json.dumps(content, separators=(",", ":")).encode())


def _packed(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """The engine, runs, adapter's runs and what the machine did, of one process."""
    engine: dict[str, Any] = {}
    runs, adapter, machine = [], [], {}
    for what in records(folder):
        kind = what.pop("kind")
        if kind == "engine":
            engine = {k: v for k, v in what.items() if k not in ("grid", "rotation")}
        elif kind == "adapter":
            adapter.append(what)
        elif kind == "run":
            steps = what.pop("steps")
            for key in ("late_ms", "intake", "seed", "at"):
                what.pop(key, None)
            if told := what.pop("machine", {}):
                machine[what["id"]] = told
            gpu = what.pop("gpu", [])
            if gpu:
                what["gpu"] = round(sum(g[1] for g in gpu) / 1e3, 4)
            what["steps"] = len(steps)
            # Under asynchronous scheduling a step is asked for before the one before it is over (column 11).
            what["busy"] = round(sum(s[3] - max(s[0], *s[11:]) for s in steps), 4)
            rows = []
            for number, arrival, prompt, output, _, outcome, _, times in what["requests"]:
                ends = [round(t * 1e6) for t in times]
                gaps = [b - a for a, b in itertools.pairwise(ends)]
                rows.append([number, arrival, prompt, output, outcome, times[0] if times else None, gaps])
            what["requests"] = rows
            runs.append(what)
    return engine, runs, adapter, machine


def first_run(folder: Path) -> list[Any]:
    """The steps of the first run in *folder*."""
    return next(what["steps"] for what in records(folder) if what["kind"] == "run")


def profile(folder: Path, name: str, when: str, command: str, out: Path, traffic: Sequence[Path] = ()) -> None:
    """The profile file of a campaign. Where traffic was not measured, the first run of each of the folders *traffic*
    may stand for it."""
    from servetwin.profiles.schema import ProfileFile
    from servetwin.real.vllm.profiling.measuring.async_steps import Rotation
    from servetwin.real.vllm.profiling.measuring.step_grid import Grid, Measured
    from servetwin.real.vllm.profiling.profile_content import profile_content
    from servetwin.real.vllm.scheduler import StepLog

    engine: dict[str, Any] = {}
    measured = []
    for what in records(folder):
        if what["kind"] == "engine":
            engine = what
        elif what["kind"] == "profile" and what["what"] != "rotation":  # that one is to check the table with
            steps = [StepLog(*step) for step in what["steps"]]
            measured.append(Measured(what["what"], steps, [tuple(i) for i in what["intake"]]))
    measured += [Measured("traffic", [StepLog(*step) for step in first_run(one)], []) for one in traffic]
    given = engine.get("rotation") or engine.get("grid")
    given = given or json.loads((folder / "plan.json").read_text())["grid"]
    kind = Rotation if engine.get("rotation") else Grid
    grid = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    content = profile_content(
        measured,
        engine,
        grid,
        name=name,
        when=when,
        command=command,
        source=f"real/{kind.__module__.split('.')[-1]}.py",
    )
    ProfileFile.model_validate(content)
    text = yaml.safe_dump(content, sort_keys=False, width=118, default_flow_style=None, allow_unicode=True)
    out.write_text("# Made by a campaign under `tests/real/vllm`; times in seconds.\n" + text, encoding="utf-8")


def _flat(step: Any) -> list[Any]:
    values = list(dataclasses.asdict(step).values())
    return [round(v, 6) if isinstance(v, float) else v for v in values]


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("plan")
    make.add_argument("out", type=Path)
    make.add_argument("--tiny", action="store_true")
    make.add_argument(
        "--short", action="store_true", help="steps with a prefill as CUDA graphs too; one or two minutes"
    )
    go = commands.add_parser("run")
    go.add_argument("plan", type=Path)
    go.add_argument("folder", type=Path)
    go.add_argument("--seconds", type=float, required=True)
    fold = commands.add_parser("pack")
    fold.add_argument("folder", type=Path)
    fold.add_argument("out", type=Path)
    fold.add_argument("--name", help="of the profile taken before")
    table = commands.add_parser("profile")
    table.add_argument("folder", type=Path)
    table.add_argument("out", type=Path)
    table.add_argument("--name", required=True)
    table.add_argument("--when", required=True)
    table.add_argument("--by", default="python tests/real/vllm/campaign.py run PLAN.json FOLDER")
    args = parser.parse_args()
    if args.command == "pack":
        pack([args.folder], args.out, args.name)
    elif args.command == "profile":
        profile(args.folder, args.name, args.when, args.by, args.out)
    elif args.command == "plan":
        if args.tiny:
            plan = {
                "engine": {"model": "tiny", "kv_bytes": 64 << 20, "max_sequences": 64},
                "grid": "small",
                "cells": cells([40, 80, 120], ["5+2", "10+3"], [1, 4], 1.5, 60, (16, 48)),
            }
        else:
            plan = {
                "engine": {
                    "model": "opt-13b",
                    "dtype": "float16",
                    "max_model_len": 2048,
                    "max_batched_tokens": 8192,
                    "max_sequences": 256,
                    "gpu_memory_utilization": 0.92,
                    "graphs": [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256],
                },
                "grid": {},
                "cells": cells([10, 16, 24], ["3+1.5", "5+2"], [1, 4], 7.5, 110, (24, 64)),
            }
        if args.short:
            decode = [1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32)]
            plan["engine"]["graphs"] = [*decode, *range(288, 513, 32), *range(576, 1025, 64)]
            plan["engine"]["graphs_for"] = "all"
            steps = [16, 32, *range(64, 257, 32), *range(288, 513, 32), *range(576, 1025, 64)]
            plan["grid"] = {
                "prefill": [1, *steps, 1280, 1536, 1792, 2047],
                "prompts": [1, 4],
                "every": 2,
                "beyond": [3072, 4096],
                "long": [256],
                "decode": decode,
                "contexts": [32, 128, 256, 512],
                "steps": 6,
                "mixed_tokens": [48, 112, 240, 496],
                "mixed_sequences": [8, 24, 64],
                "chunks": [512],
                "repeats": 2,
            }
            plan["cells"] = short(6.0, (24, 64))
        if args.tiny and args.short:
            plan["engine"] = {"model": "tiny", "kv_bytes": 64 << 20, "max_sequences": 64}
        args.out.write_text(json.dumps(plan))
        print(len(plan["cells"]), "cells", round(sum(c["requests"][-1][0] for c in plan["cells"])), "s")
    else:
        with contextlib.suppress(FileNotFoundError):
            (args.folder / "runs.jsonl.gz").unlink()
        args.folder.mkdir(parents=True, exist_ok=True)
        run(json.loads(args.plan.read_text()), args.folder, args.seconds)


if __name__ == "__main__":
    sys.exit(main())
