"""Splitwise's clusters of machines that prefill, decode, or do both, by the step times that its authors measured.

``python -m servetwin.experiments.validation.splitwise`` simulates the clusters of the paper's Figures 16 and 18
(Patel et al., ISCA'24): BLOOM-176B on DGX-A100 and DGX-H100, as many machines as have the same power, or the same
cost. It prints the highest rate at which each keeps the paper's nine limits: of time to first token, time per output
token and latency, at the 50th, 90th and 99th percentile, as multiples of what the same request takes alone on a
DGX-A100 (Table 6). Rates are tried in steps of 10 requests a second, as the paper's are.

With ``--decode lookup`` decode steps take what the paper's simulator makes of its table, see `looked_up`: to tell
what of a difference is due to that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from servetwin.core import BadInput, Recorder, Request
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import TokenTask
from servetwin.profiles import load as load_profile

from ..assembly import build
from ..spec.experiment import Experiment
from ..spec.loading import load
from .replay import as_command

A100, H100, CAPPED = (
    "a100/bloom-176b-tp8-imported",
    "h100/bloom-176b-tp8-imported",
    "h100/bloom-176b-tp8-capped-imported",
)
#: Of a machine with eight GPUs: dollars an hour and power relative to each other (the authors' notebooks/utils.py at
#: 8f99e7d: 2.21 and 4.76, 24.8 and 44; Table 5 of the paper has the ratios). The capped one has 70 % of the power.
COST = {A100: 2.21, H100: 4.76, CAPPED: 4.76}
POWER = {A100: 24.8, H100: 44.0, CAPPED: 0.7 * 44.0}
#: Slowdowns that percentiles of requests may have (Table 6).
QUANTILES = (0.5, 0.9, 0.99)
SLOWDOWNS = {"ttft": (2.0, 3.0, 6.0), "tpot": (1.25, 1.5, 5.0), "e2el": (1.25, 1.5, 5.0)}
#: KV goes at this rate in the authors' simulator (configs/orchestrator_repo/schedulers/mixed_pool.yml: 200 GiB/s).
HANDOVER = {
    "gb_per_s": 200 * 2**30 / 1e9,
    "link": "unlimited",
    "source": "200 GiB/s, as Splitwise's simulator has it",
}
#: Lengths by trace. The traces themselves (Azure's of 2023) are not part of ServeTwin. These have the medians of
#: Figure 3 and the means that generate_trace.py states (prompts 2,048 and 1,155, outputs 28 and 211), as lognormals.
LENGTHS = {
    "code": {
        "prompt": {"draw": "lognormal", "median": 1500, "p90": 4121, "low": 3, "high": 7400},
        "output": {"draw": "lognormal", "median": 13, "p90": 63, "low": 6, "high": 700},
    },
    "conversation": {
        "prompt": {"draw": "lognormal", "median": 1020, "p90": 1935, "low": 2, "high": 7400},
        "output": {"draw": "lognormal", "median": 129, "p90": 460, "low": 7, "high": 700},
    },
}


#: How far the cost or power of clusters that are said to have the same may be off without a word: where few machines
#: are left of a scaled cluster, rounding to whole ones changes it by more.
ROUNDED = 0.1


@dataclass(frozen=True)
class Cluster:
    """So many machines of a kind that *prefill*, and so many that *decode*; without these the first do both."""

    name: str
    prefill: tuple[int, str]
    decode: tuple[int, str] | None = None

    def total(self, of: Mapping[str, float]) -> float:
        """The cluster's cost or power."""
        return float_sum(count * of[kind] for count, kind in filter(None, (self.prefill, self.decode)))

    @property
    def machines(self) -> str:
        if self.decode is None:
            return f"{self.prefill[0]}P/T"
        return f"{self.prefill[0]}P, {self.decode[0]}T"

    def splits(self, many: int, of: Mapping[str, float]) -> list[Cluster]:
        """This cluster, and *many* others of the same cost or power that are split otherwise."""
        if self.decode is None:
            return [self]
        (_, first), (_, second) = self.prefill, self.decode
        total = self.total(of)
        found = [self]
        for place in range(1, many + 1):
            prefill = max(round(total / of[first] * place / (many + 1)), 1)
            decode = int((total - prefill * of[first]) / of[second] + 1e-9)
            if decode:
                found.append(Cluster(self.name, (prefill, first), (decode, second)))
        return found

    def scaled(self, by: float) -> Cluster:
        """With *by* times as many machines, one of each kind at least."""
        fewer = [part and (max(round(by * part[0]), 1), part[1]) for part in (self.prefill, self.decode)]
        return Cluster(self.name, fewer[0] or self.prefill, fewer[1])


def _clusters(a100: int, *splits: tuple[int, int]) -> tuple[Cluster, ...]:
    (aa, hh, ha, cap) = splits
    return (
        Cluster("Baseline-A100", (a100, A100)),
        Cluster("Baseline-H100", (40, H100)),
        Cluster("Splitwise-AA", (aa[0], A100), (aa[1], A100)),
        Cluster("Splitwise-HH", (hh[0], H100), (hh[1], H100)),
        Cluster("Splitwise-HA", (ha[0], H100), (ha[1], A100)),
        Cluster("Splitwise-HHcap", (cap[0], H100), (cap[1], CAPPED)),
    )


#: Figures 16 and 18: the machines by budget and trace (legends of Figure 16; of the others notebooks/plots.ipynb).
CLUSTERS = {
    ("power", "code"): _clusters(70, (55, 15), (35, 5), (35, 8), (35, 7)),
    ("power", "conversation"): _clusters(70, (45, 25), (25, 15), (25, 26), (25, 21)),
    ("cost", "code"): _clusters(86, (66, 20), (35, 5), (35, 10), (35, 7)),
    ("cost", "conversation"): _clusters(86, (51, 35), (25, 15), (30, 21), (30, 10)),
}


def looked_up(folder: Path) -> dict[str, str]:
    """The profiles with decode steps as the authors' simulator takes them, as files in *folder*, by their names here.

    It looks a decode step up in their table by its number of tokens, one a sequence, where the table has the tokens
    of the prompts of a batch (performance_model.py at 8f99e7d: ``batch_tokens``). So a step of any number of
    sequences up to 512 takes about what one alone takes. Machines run up to 512 requests, and what weights leave of 8
    x 80 GiB holds KV.
    """
    files = {}
    for name in (A100, H100, CAPPED):
        content = load_profile(name).data.model_dump(mode="json", exclude_none=True)
        tokens = content["tokens"]
        for kind in tokens["kinds"].values():
            alone = kind["surface"]["seconds"][0][0]
            kind["surface"] |= {"batch": [1, 512], "per_sequence": [1, 8192], "seconds": [[alone, alone]] * 2}
        shape = tokens["shape"]
        each = 2 * 2 * shape["layers"] * shape["hidden"]  # bytes of a token's keys and values, in all heads
        tokens["kv"]["blocks"] = int((8 * 80 * 2**30 - 2 * shape["parameters"]) / each / tokens["kv"]["block_size"])
        tokens["kv"]["statistic"] = "given, what weights leave of 8 x 80 GiB"
        tokens["engine"]["max_sequences"] = 512
        files[name] = str(folder / f"{name.replace('/', '-')}.yaml")
        Path(files[name]).write_text(yaml.safe_dump(content), encoding="utf-8")
    return files


def experiment(
    cluster: Cluster,
    trace: str,
    rate: float,
    seconds: float,
    seed: int = 0,
    profiles: Mapping[str, str] | None = None,
) -> Experiment:
    """*cluster* under requests of *trace*, *rate* of them a second for so many *seconds*; with *profiles*
    (`looked_up`) in place of those that come along."""
    limit = 512 if profiles else 64
    devices: dict[str, str] = {}
    workers: list[dict[str, Any]] = []
    for role, part in (("prefill", cluster.prefill), ("decode", cluster.decode)):
        for n in range(part[0] if part else 0):
            name = f"{role}{n}"
            devices[name] = (profiles or {}).get(part[1], part[1]) if part else ""
            worker = {"name": name, "modules": ["llm"], "device": name, "limit": limit}
            workers.append({**worker, "role": role} if cluster.decode else worker)
    deployment: dict[str, Any] = {"devices": devices, "workers": workers, "router": "least_loaded"}
    if cluster.decode:
        deployment["handover"] = {**HANDOVER, "router": "least_loaded"}
    return load(
        "opt-13b-a6000",
        [
            ("name", cluster.name.lower()),
            ("workload.requests", max(round(rate * seconds), 1)),
            ("workload.draws", "seeded"),
            ("workload.arrivals", {"process": "poisson", "rate": rate}),
            ("workload.lengths", {"llm": LENGTHS[trace]}),
            ("slo", {"prefill": None, "decode": None, "limits": {"ttft_ms": 10000.0}}),
            ("policy", "splitwise"),
            ("time.table", "measured"),
            ("deployment", deployment),
            ("seed", seed),
        ],
    )


class _Slowdowns(Recorder):
    """Of each request that has ended how many times as long it took as alone on a DGX-A100."""

    def __init__(self) -> None:
        super().__init__()
        self.times = load_profile(A100).tokens("measured")
        self.rows: list[tuple[float, float, float]] = []
        self.lost = 0

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        (task,) = request.tasks
        if not isinstance(task, TokenTask) or task.first_token is None:
            self.lost += 1
            return
        prefill, decode = self._alone(task.prompt), self.times.decode(1, task.prompt)
        more = task.generated - 1
        first, last = task.first_token - request.arrival, now - request.arrival
        tpot = (last - first) / more / decode if more else 1.0
        self.rows.append((first / prefill, tpot, last / (prefill + more * decode)))

    @cache  # noqa: B019 - a recorder lives as long as its run
    def _alone(self, prompt: int) -> float:
        return self.times.prefill(prompt)


def slowdowns(experiment: Experiment) -> dict[str, tuple[float, ...]]:
    """Percentiles of slowdowns in a run of *experiment*, by metric; infinite if a request was dropped."""
    recorder = _Slowdowns()
    build.build(experiment, recorder).play()
    if recorder.lost or not recorder.rows:
        return {name: (float("inf"),) * len(QUANTILES) for name in SLOWDOWNS}
    found = np.quantile(np.array(recorder.rows), QUANTILES, axis=0)
    return {name: tuple(map(float, found[:, n])) for n, name in enumerate(SLOWDOWNS)}


def broken(found: dict[str, tuple[float, ...]]) -> list[str]:
    """Which of the nine limits *found* does not keep."""
    return [
        f"p{round(100 * q)} {name} {x:.2f}"
        for name, limits in SLOWDOWNS.items()
        for q, x, most in zip(QUANTILES, found[name], limits, strict=True)
        if not x < most
    ]


class Tried:
    """Which rates clusters hold: each cluster is tried once, under requests for *seconds*."""

    def __init__(self, seconds: float, scale: float = 1.0, profiles: Mapping[str, str] | None = None) -> None:
        self.seconds, self.scale, self.profiles = seconds, scale, profiles
        self.rates = [scale * 10.0 * n for n in range(1, 31)]
        self.known: dict[tuple[Cluster, str], tuple[float, list[str]]] = {}

    def wrong(self, cluster: Cluster, trace: str, rate: float) -> list[str]:
        """Which limits *cluster* does not keep at that *rate*."""
        return broken(slowdowns(experiment(cluster, trace, rate, self.seconds, profiles=self.profiles)))

    def highest(self, cluster: Cluster, trace: str) -> tuple[float, list[str]]:
        """The highest rate at which *cluster* keeps all limits (0: at none), and what breaks at the next; by halving,
        since what breaks at a rate is taken to break above it."""
        key = (cluster, trace)
        if key not in self.known:
            low, high, why = 0, len(self.rates), list[str]()
            while low < high:
                middle = (low + high) // 2
                if found := self.wrong(cluster, trace, self.rates[middle]):
                    high, why = middle, found
                else:
                    low = middle + 1
            self.known[key] = (self.rates[low - 1] if low else 0.0, why)
        return self.known[key]

    def rows(self, budget: str, trace: str, splits: int = 0) -> Iterator[tuple[Cluster, float, list[str]]]:
        """Each cluster of the same *budget*, scaled, with its highest rate, and what breaks above; with *splits* the
        best of so many other splits and its own."""
        for cluster in CLUSTERS[budget, trace]:
            fewer = cluster if self.scale == 1.0 else cluster.scaled(self.scale)
            tried = fewer.splits(splits, POWER if budget == "power" else COST)
            best = max(tried, key=lambda split: self.highest(split, trace)[0])
            yield (best, *self.highest(best, trace))


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m servetwin.experiments.validation.splitwise",
        description="The highest rates that Splitwise's clusters hold (ISCA'24, Figures 16 and 18).",
    )
    parser.add_argument("--budget", choices=("power", "cost"), help="what clusters have the same of; else both")
    parser.add_argument("--trace", choices=tuple(LENGTHS), help="whose lengths requests have; else both")
    parser.add_argument("--seconds", type=float, default=120.0, help="of arrivals, in simulated time (120)")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the machines and rates (1)")
    parser.add_argument("--decode", choices=("table", "lookup"), default="table", help="what decode steps take")
    parser.add_argument("--splits", type=int, default=0, help="the best of so many other splits of machines, too")
    told = parser.parse_args(args)
    for name in ("seconds", "scale"):
        if not 0 < getattr(told, name) < float("inf"):
            raise BadInput(f"is {getattr(told, name)}", where=f"--{name}", right="a number above 0")
    if told.splits < 0:
        raise BadInput(f"is {told.splits}", where="--splits", right="0 or more")
    with tempfile.TemporaryDirectory() as folder:
        tried = Tried(told.seconds, told.scale, looked_up(Path(folder)) if told.decode == "lookup" else None)
        for budget, trace in CLUSTERS:
            if told.budget in (None, budget) and told.trace in (None, trace):
                _table(tried, budget, trace, told.splits)


def _table(tried: Tried, budget: str, trace: str, splits: int) -> None:
    """Cost and power are told relative to 40 DGX-H100s."""
    sys.stdout.write(f"same {budget}, {trace}; decode steps: {'looked up' if tried.profiles else 'as measured'}\n")
    sys.stdout.write("cluster          machines   requests/s   cost  power  breaks at the next rate\n")
    notes: list[str] = []
    for cluster, rate, why in tried.rows(budget, trace, splits):
        cost, power = (cluster.total(of) / (tried.scale * 40 * of[H100]) for of in (COST, POWER))
        sys.stdout.write(f"{cluster.name:<15}  {cluster.machines:<9}  {rate:>10g}   {cost:>4.2f}   {power:>4.2f}")
        sys.stdout.write(f"  {', '.join(why)}\n")
        off = (power if budget == "power" else cost) - 1.0
        if abs(off) > ROUNDED:
            notes.append(f"{cluster.name} has not the same {budget}: {100 * off:+.0f} %, since machines are whole\n")
        sys.stdout.flush()
    sys.stdout.write("".join(notes) + "\n")


if __name__ == "__main__":
    as_command.run(main)
