"""Recorded runs of a pipeline of language models on one GPU, repeated in simulation and held against it.

``python -m servetwin.experiments.validation.replay.agents`` prints, for each recorded run, what was met for real
and in simulation, whether both name the same winner, and the rows of Table 2 of NeuStream as measured: what
communication, scheduling and switching cost.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...assembly import build
from ...registry.catalog import MEASURED
from ...spec.experiment import Experiment
from ...spec.loading import load

RECORDING = MEASURED / "h200" / "agents.json.gz"
#: What NeuStream reports in its Table 2, as its artifact logs it (CodeLlama, LLaVA; RTX 4090).
NEUSTREAM = {"switching": (0.0022, 0.0014), "scheduling": (0.0531, None), "communication": (None, None)}


def is_agents(path: Path) -> bool:
    """Whether *path* is such a recording."""
    return path.name.startswith("agents") and path.name.endswith(".json.gz")


@cache
def read(path: Path = RECORDING) -> dict[str, Any]:
    """A recording as `tests/real/vllm/agents_pack.py` makes it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


@dataclass(frozen=True)
class Compared:
    """One run: its requests that met their SLO and that finished, goodput (requests/s) and mean latency (s), each for
    real and in simulation."""

    name: str
    policy: str
    rate: float
    requests: int
    met: tuple[int, int]
    finished: tuple[int, int]
    goodput: tuple[float, float]
    latency: tuple[float, float]

    @property
    def gap(self) -> float:
        """Attainment in simulation less the measured one."""
        return (self.met[1] - self.met[0]) / self.requests


def experiments(recording: dict[str, Any], *, contention: bool = True) -> list[Experiment]:
    """The experiment of each run of *recording*."""
    return [
        load(
            recording["workload"],
            [
                ("variant", "measured"),
                ("workload.requests", len(run["requests"])),
                ("workload.arrivals.rate", run["rate"]),
                ("policy.name", run["policy"]),
                ("seed", run["seed"]),
                ("time.contention", contention),
            ],
        )
        for run in recording["runs"]
    ]


def compare(recording: dict[str, Any], *, contention: bool = True) -> list[Compared]:
    """Each run of *recording* beside its simulation: the same experiment, the same requests."""
    found = []
    for run, experiment in zip(recording["runs"], experiments(recording, contention=contention), strict=True):
        simulated = build.run(experiment).as_dict()
        real = run["summary"]
        found.append(
            Compared(
                run["name"],
                run["policy"],
                run["rate"],
                len(run["requests"]),
                (real["met"], simulated["met"]),
                (real["finished"], simulated["finished"]),
                (real["request_goodput"], simulated["request_goodput"]),
                (_seconds(real), _seconds(simulated)),
            )
        )
    return found


def _seconds(summary: dict[str, Any]) -> float:
    mean = summary.get("mean_e2el_ms")
    return float("nan") if mean is None else float(mean) / 1e3


def winners(compared: list[Compared]) -> dict[float, tuple[str, str]]:
    """The policy that met most requests at each rate, (for real, in simulation); "" where several did."""
    found = {}
    for rate in sorted({c.rate for c in compared}):
        some = [c for c in compared if c.rate == rate]
        if len(some) > 1:
            found[rate] = (_best(some, 0), _best(some, 1))
    return found


def _best(some: list[Compared], side: int) -> str:
    most = max(c.met[side] for c in some)
    best = [c.policy for c in some if c.met[side] == most]
    return best[0] if len(best) == 1 else ""


def table2(recording: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the rows of NeuStream's Table 2, as shares.

    "switching": of the time of four prompts and a decode step of each, alternating against grouped (median);
    "scheduling": of a decode step, until the policy has decided (mean over the runs, of the engines), "adapter" with
    what our adapter and vLLM make of the decision; "communication": of a request's latency, from the loop to the
    engines and back (mean over the runs).
    """
    switching = recording["switching"]
    apart, grouped = (statistics.median(switching[k]) for k in ("alternating", "grouped"))
    told = [run["real"]["tools"] for run in recording["runs"]]
    engines = [t[name] for t in told for name in ("coder", "judge") if "deciding_over_decode_step" in t.get(name, {})]
    shares = [t["pipeline"]["communication_over_e2el"] for t in told if "pipeline" in t]
    return {
        "switching": apart / grouped - 1.0,
        "scheduling": statistics.fmean(e["deciding_over_decode_step"] for e in engines),
        "adapter": statistics.fmean(e["scheduling_over_decode_step"] for e in engines),
        "communication": statistics.fmean(shares),
    }


def table() -> str:
    """What the recording says, as text."""
    recording = read()
    compared = compare(recording)
    lines = ["run                  requests  met real/sim  goodput real/sim  mean latency real/sim"]
    lines += [
        f"{c.name:<20} {c.requests:8d}  {c.met[0]:5d} / {c.met[1]:<5d} {c.goodput[0]:7.2f} / {c.goodput[1]:<6.2f}"
        f" {c.latency[0]:7.2f} / {c.latency[1]:<6.2f} s"
        for c in compared
    ]
    for rate, (real, simulated) in winners(compared).items():
        lines.append(f"at {rate:g}/s: {real or 'several'} best for real, {simulated or 'several'} in simulation")
    for name, value in table2(recording).items():
        theirs = ", ".join(f"{v:.2%}" for v in NEUSTREAM.get(name, ()) if v is not None) or "not logged"
        lines.append(f"{name:<14} {value:7.2%}   NeuStream: {theirs}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
