"""``make bench``: what the simulator costs, and how that compares. docs/explanation/performance.md explains the
cases.

python -m servetwin.experiments.bench [--rounds N] [--only CASE] [--long]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from servetwin.core import Recorder, Summary
from servetwin.core.arithmetic import float_sum
from servetwin.experiments.assembly import build
from servetwin.experiments.spec import yaml_io
from servetwin.experiments.spec.loading import load

from .cached import cached
from .fleet import fleet
from .llm import llm, llm_long
from .measure import Cost, in_process, process, ratios, spread, turns
from .simulators import ratios_now, simulators
from .step_edf import STYLES, Case

CLI = ("-m", "servetwin.experiments.cli")

#: The model of `step_edf` as a profile: 30 ms an iteration and 10.5 ms for each request in it.
PROFILE = """
schema_version: 1
name: bench/steps
description: a synthetic diffusion model
device: {name: a GPU, kind: gpu}
model: none
precision: none
batch_counts: requests
measured_when: never
origin: {repository: here}
modules:
  unet:
    loop: true
    tables:
      scheduler: {batch: [1, 16], seconds: [0.0405, 0.198], statistic: exact, source: {file: this}}
"""
EXPERIMENT = """
name: steps
pipeline: {modules: {unet: {loop: true}}}
workload:
  requests: 500
  arrivals: {process: poisson, rate: 1.4}
  steps: {unet: {draw: constant, steps: 50}}
slo: {seconds: 10.0}
policy: {name: edf}
deployment:
  devices: {gpu0: profile.yaml}
  workers: [{modules: [unet], device: gpu0, limit: 16}]
"""


def step_edf(rounds: int) -> None:
    """The same decisions in three styles, equal to the bit."""
    print(f"\nstep-level EDF, 500 requests of 50 steps, batch <= 16; CPU ms, median (range) of {rounds} rounds")
    print(f"{'rate':>5} {'iterations':>10} {'ServeTwin':>20} {'naive SimPy':>20} {'bare loop':>20}"
          f" {'naive / ServeTwin':>20} {'ServeTwin / bare':>20}")  # fmt: skip
    for rate in (0.6, 1.2, 1.4, 1.6):
        case = Case(rate=rate)
        results = {name: style(case).key for name, style in STYLES.items()}
        if len(set(results.values())) != 1:
            raise SystemExit(f"at {rate} requests/s the styles differ: {', '.join(results)}")
        costs = turns({n: partial(in_process, partial(style, case)) for n, style in STYLES.items()}, rounds)
        columns = [spread([c.cpu for c in costs[name]], 1000) for name in STYLES]
        columns += [ratios(costs["naive"], costs["twin"]), ratios(costs["twin"], costs["bare"])]
        print(f"{rate:>5} {results['twin'][0]:>10} " + " ".join(f"{c:>20}" for c in columns))


def one_run(rounds: int) -> None:
    """A run of 500 requests of DiT-S/2 under NeuStream."""
    print(f"\none run: DiT-S/2 on an RTX 4090, NeuStream, 500 requests; CPU ms, median (range) of {rounds} rounds")
    rates = (2.0, 4.0, 8.0)
    runs = {rate: load("dit-s2-256-rtx4090", [("variant", "neustream-ae"), ("rate", rate)]) for rate in rates}

    def once(rate: float) -> Cost:
        return in_process(build.build(runs[rate], Recorder()).play)

    costs = turns({str(rate): partial(once, rate) for rate in rates}, rounds)
    for rate in rates:
        summary = build.run(runs[rate])
        iterations = sum(sizes.total() for sizes in summary.sizes.values())
        steps = sum(n * k for sizes in summary.sizes.values() for n, k in sizes.items())
        cpu = [c.cpu for c in costs[str(rate)]]
        each = 1e6 * statistics.median(cpu)
        print(f"rate {rate:g}: {spread(cpu, 1000)} ms; {iterations} iterations, {each / iterations:.1f} us each;"
              f" {steps} request-steps, {each / steps:.2f} us each")  # fmt: skip


#: Runs with and without records: workload, policy, rate.
RECORDED_RUNS = (
    ("dit-s2-256-rtx4090", "neustream", 4.0),
    ("dit-s2-256-rtx4090", "edf", 4.0),
    ("sd15-512-rtx4090", "neustream", 0.6),
    ("opt-13b-a6000", "vllm", 2.0),
    ("opt-13b-a6000", "vllm-v1", 2.0),
    ("opt-13b-h100-async", "vllm-v1", 4.0),
    ("opt-13b-h100-async", "vllm-v1", 12.0),
    ("opt-13b-a6000", "neustream-llm", 2.0),
    ("matplotagent-rtx4090", "neustream-llm", None),
)


def records(rounds: int) -> None:
    """Runs with their report, and with their records as well."""
    print(f"\nruns with their report alone and with `--out`; CPU ms of {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for workload, policy, rate in RECORDED_RUNS:
            given = [("policy", policy), *([("rate", rate)] if rate is not None else [])]
            places = (Path(folder) / f"{workload}-{policy}-{rate}-{i}" for i in itertools.count())
            run = partial(build.run, load(workload, given))
            cases = {"plain": partial(_reported, run), "recorded": partial(_recorded, run, places)}
            costs = turns({name: partial(in_process, case) for name, case in cases.items()}, rounds)
            plain, recorded = ([cost.cpu for cost in costs[name]] for name in cases)
            least = f"{min(recorded) / min(plain):.2f} by the least of each"
            told = f"{spread(plain, 1000)}, with records {spread(recorded, 1000)}"
            at = f" at {rate:g}/s" if rate is not None else ""
            print(f"{workload} {policy}{at}: {told}; ratio {ratios(costs['recorded'], costs['plain'])}, {least}")


def _reported(run: Callable[..., Summary]) -> None:
    run().as_dict()


def _recorded(run: Callable[..., Summary], places: Iterator[Path]) -> None:
    run(next(places))


def sweep_300(rounds: int) -> None:
    """300 runs (30 rates, 10 seeds) of 500 requests of 50 steps on two processes; nothing cached or imported."""
    print("\n300 runs of 500 requests of 50 steps near saturation, `servetwin sweep`, two processes, cold")
    rates = [round(1.0 + 0.02 * i, 2) for i in range(30)]
    seeds = {"seed": list(range(10))}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "profile.yaml").write_text(PROFILE)
        (here / "steps.yaml").write_text(EXPERIMENT)
        _spec(here / "edf.yaml", extends="steps.yaml", grid={"rate": rates, **seeds})
        neustream = {"workload.draws": "seeded", "workload.steps.unet": {"draw": "constant", "steps": 50}}
        _spec(
            here / "neustream.yaml",
            extends="sd15-512-rtx4090",
            set=neustream,
            grid={"rate": [round(0.5 * r, 3) for r in rates], **seeds},
        )
        for name, what in (("edf", "EDF, one module"), ("neustream", "NeuStream, SD 512x512 as measured")):
            costs = [_sweep(here / f"{name}.yaml", here / f"{name}{i}") for i in range(rounds)]
            _say(what, costs)


def figures(rounds: int) -> None:
    """The published grids, cold and from the cache."""
    print("\nFigures 11 and 12 (264 runs), `servetwin sweep`, two processes")
    with tempfile.TemporaryDirectory() as folder:
        cold: list[Cost] = []
        warm: list[Cost] = []
        for i in range(rounds):
            cache = Path(folder) / f"cache{i}"
            for costs in (cold, warm):
                both = [_sweep(name, cache) for name in ("figure11", "figure12")]
                costs.append(Cost(float_sum(c.cpu for c in both), float_sum(c.wall for c in both)))
        _say("cold", cold)
        _say("from the cache", warm)


def whole_process(rounds: int) -> None:
    """`servetwin run`, start to end."""
    print("\n`servetwin run dit-s2-256-rtx4090 --rate 4`, 500 requests, whole process")
    with tempfile.TemporaryDirectory() as folder:
        run = partial(process, [*CLI, "run", "dit-s2-256-rtx4090", "--rate", "4"], Path(folder))
        run()
        _say("run", [run() for _ in range(rounds)])


def long(rounds: int) -> None:
    """A million requests: time in proportion, memory flat."""
    print("\nlong runs: SD 512x512, NeuStream near the knee, 50 steps; a process each")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for requests, records in ((10_000, False), (100_000, False), (1_000_000, False), (100_000, True)):
            command = [sys.executable, "-m", "servetwin.experiments.bench.long", str(requests)]
            command += [str(Path(folder) / "records")] if records else []
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(said.stdout)
            each = 1e6 * found["cpu"] / requests
            first = first or each
            print(f"{requests:>9} requests{', records streamed' if records else ''}: {found['cpu']:.1f} CPU s,"
                  f" {each:.1f} us a request ({each / first:.2f} of the first line), {found['memory']:.0f} MiB,"
                  f" {100 * found['attainment']:.1f} % met")  # fmt: skip


def _spec(path: Path, **content: object) -> None:
    path.write_text(yaml_io.write(content))


def _sweep(spec: str | Path, cache: Path) -> Cost:
    return process([*CLI, "sweep", str(spec), "--out", str(cache.parent / "out.parquet"), "--jobs", "2"], cache)


def _say(what: str, costs: list[Cost]) -> None:
    wall, cpu = spread([c.wall for c in costs], digits=2), spread([c.cpu for c in costs], digits=2)
    print(f"{what}: {wall} s wall, {cpu} CPU s")


CASES: dict[str, Callable[[int], None]] = {
    "simulators": simulators,
    "ratios": ratios_now,
    "edf": step_edf,
    "run": one_run,
    "records": records,
    "sweep": sweep_300,
    "figures": figures,
    "process": whole_process,
    "llm": llm,
    "cached": cached,
    "fleet": fleet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the short cases; the longer ones get fewer")
    parser.add_argument("--only", choices=[*CASES, "long"], help="one case")
    parser.add_argument("--long", action="store_true", help="also runs of up to a million requests (minutes)")
    asked = parser.parse_args()
    few = max(1, asked.rounds // 2)
    for name, case in CASES.items():
        if asked.only in (None, name):
            case(few if name in ("sweep", "figures", "fleet") else asked.rounds)
    if asked.long or asked.only == "long":
        long(1)
        llm_long()


if __name__ == "__main__":
    main()
