"""Two runs side by side: how far apart they are in outcomes, batches, latencies and the time of an iteration.

Reads run folders, and for the last the profiles that the runs name, where they are still there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput, Shape
from servetwin.core.arithmetic import float_sum

from ...workload.traces.bench_file import is_bench
from . import compare_fleets, compare_llm_runs, compare_quality
from .run_files import batch_lines, read_json, request_lines

if TYPE_CHECKING:
    from servetwin.profiles import Kind

PERCENTILES = (50, 90, 99)
#: A worker, the shape of its requests (None: they have none), and on how many devices it computes them.
Key = tuple[str, "Shape | None", int]


@dataclass(frozen=True)
class RunRecords:
    """What a run folder says."""

    folder: Path
    meta: dict[str, Any]
    summary: dict[str, Any]
    outcomes: dict[int, str]
    latencies: np.ndarray  # of finished requests, in seconds
    asked: dict[int, tuple[float, Any]]  # when each request came, and what it asked for
    limits: dict[int, list[int]] | None  # the tokens that each declared, if that is known
    shapes: Mapping[int, Shape] = field(default_factory=dict)  # of the requests that say one

    @property
    def label(self) -> str:
        experiment = self.meta.get("experiment", {})
        name, policy = experiment.get("name", "?"), experiment.get("policy", {}).get("name", "?")
        return f"{name}, {policy}, {self.meta.get('kind', '?')}"

    @property
    def load(self) -> dict[str, Any]:
        """Its rate and cv, where its arrivals have some, and its seed."""
        experiment = self.meta.get("experiment", {})
        arrivals = experiment.get("workload", {}).get("arrivals", {})
        found = {"rate": arrivals.get("rate"), "cv": arrivals.get("cv"), "seed": self.meta.get("seed")}
        return {key: value for key, value in found.items() if value is not None}


def read(folder: Path) -> RunRecords:
    """Read a run folder. Raises `BadInput` if it is none, or if the run did not come to its end."""
    if not folder.is_dir():
        raise BadInput(
            "there is no such folder", where=str(folder), right="a folder that `servetwin run --out` wrote"
        )
    meta = read_json(folder / "meta.json", "not a run folder: it has no meta.json")
    summary = read_json(folder / "summary.json", "the run did not come to its end: it has no summary.json")
    outcomes: dict[int, str] = {}
    latencies = []
    asked: dict[int, tuple[float, Any]] = {}
    limits: dict[int, list[int]] = {}
    shapes: dict[int, Shape] = {}
    for record in request_lines(folder):
        outcomes[record["id"]] = record["outcome"]
        tokens = [at for at in record["stages"][:1] if "prompt" in at and "limit" in at]
        shape = record.get("shape")
        if shape is not None:
            shapes[record["id"]] = Shape(**shape)
        asked[record["id"]] = (record["arrival"], (record["work"], shape, [at["prompt"] for at in tokens]))
        limits[record["id"]] = [at["limit"] for at in tokens]
        if record["finished"] is not None:
            latencies.append(record["finished"] - record["arrival"])
    if len(outcomes) != summary.get("requests", len(outcomes)):
        what = f"it has {len(outcomes)} requests, and summary.json counts {summary['requests']}"
        raise BadInput(what, where=str(folder / "requests.jsonl"), right="the whole file")
    found = Counter(outcomes.values())
    for name in ("met", "late", "dropped", "failed"):
        if outcomes and found[name] != summary[name]:
            what = f"{found[name]} requests are {name}, and summary.json counts {summary[name]}"
            raise BadInput(what, where=str(folder / "requests.jsonl"), right="the files of one run")
    engine = meta.get("engine")
    unknown = isinstance(engine, dict) and "bench" in engine  # vllm bench serve does not say what requests declared
    return RunRecords(
        folder, meta, summary, outcomes, np.array(latencies), asked, None if unknown else limits, shapes
    )


def is_run(folder: Path) -> bool:
    """Whether *folder* is a run folder, of a run that ended or not."""
    return (folder / "meta.json").is_file()


def are_runs(first: Path, second: Path) -> bool:
    """Whether two runs are to be compared, rather than two collections of runs. Raises `BadInput` if it is one of
    each; what is not there counts as a run, and so does a file of ``vllm bench serve``."""
    if any(is_bench(path) for path in (first, second)):
        return True
    if is_run(first) != is_run(second) and first.exists() and second.exists():
        one = first if is_run(first) else second
        raise BadInput("this is one run, the other are many", where=str(one), right="two runs, or two collections")
    return is_run(first) or not (first.exists() and second.exists())


def find_runs(folder: Path) -> list[Path]:
    """The folders, at any depth in *folder*, of runs that came to their end."""
    return sorted(meta.parent for meta in folder.rglob("meta.json") if (meta.parent / "summary.json").is_file())


def compare(first: Path, second: Path) -> dict[str, Any]:
    """How run *second* differs from run *first*.

    Attainment in percent of requests and its gap in points, goodput in requests per second, latencies in seconds.
    For the batch sizes of a worker, *distance* is the share of iterations (in percent) that would have to change
    their size to make the two distributions equal. Language models add *tokens* (their figures by stage) and *steps*
    (see `servetwin.experiments.validation.comparison.compare_llm_runs`); where policies may leave steps out, there is
    *quality* (`servetwin.experiments.validation.comparison.compare_quality`).
    """
    a, b = read(first), read(second)
    out: dict[str, Any] = {
        "runs": [{"folder": str(r.folder), "label": r.label, **r.load} for r in (a, b)],
        "requests": [r.summary["requests"] for r in (a, b)],
        "basis": [*dict.fromkeys(line for r in (a, b) for line in r.summary.get("basis", ()))],
        "attainment": _pair(*(100.0 * r.summary["attainment"] if r.summary["requests"] else None for r in (a, b))),
        "finished": _pair(*(_percent(r, "finished") for r in (a, b))),
        "dropped": _pair(*(_percent(r, "dropped") for r in (a, b))),
        "goodput": _pair(*(r.summary["request_goodput"] for r in (a, b))),
    }
    for p in PERCENTILES:
        out[f"e2el_p{p}"] = _pair(
            *(float(np.percentile(r.latencies, p)) if r.latencies.size else None for r in (a, b))
        )
    out["other_requests"] = _others(a, b)
    common = a.outcomes.keys() & b.outcomes.keys()
    same = sum(a.outcomes[i] == b.outcomes[i] for i in common)
    out["same_outcome"] = 100.0 * same / len(common) if common and out["other_requests"] is None else None
    out["workers"] = {
        name: _batches(a.summary["workers"][name], b.summary["workers"][name])
        for name in a.summary["workers"]
        if name in b.summary["workers"]
    }
    out["tokens"] = compare_llm_runs.figures(a.summary, b.summary, _pair)
    if out["tokens"]:
        tables = compare_llm_runs.tables_of(a.meta)
        out["steps"] = compare_llm_runs.steps(batch_lines(first), batch_lines(second), tables)
    out["iterations"] = _iterations(a, b)
    out |= compare_fleets.figures(a.summary, b.summary, _pair)
    first_cost, second_cost = (run.summary.get("cost") for run in (a, b))
    if first_cost is not None and second_cost is not None:
        out["cost"] = {name: _pair(first_cost[name], second_cost.get(name)) for name in first_cost}
    if quality := compare_quality.figures(a.summary, b.summary, _pair):
        out["quality"] = quality
    return out


def _others(a: RunRecords, b: RunRecords) -> str | None:
    """Why the requests of *b* are not those of *a*, whose outcomes then do not belong together; None if they are.

    A client of a real run sends late: its times may be off by half the mean gap, in the median.
    """
    if len(a.asked) != len(b.asked) or a.asked.keys() != b.asked.keys():
        return f"{len(a.asked)} and {len(b.asked)} requests" if len(a.asked) != len(b.asked) else "other numbers"
    if any(a.asked[i][1] != b.asked[i][1] for i in a.asked):
        return "they ask for other work"
    if a.limits is not None and b.limits is not None and a.limits != b.limits:
        return "they declare other limits"
    if not a.asked:
        return None
    first, second = (np.array([r.asked[i][0] for i in sorted(a.asked)]) for r in (a, b))
    apart = np.abs((first - first.min()) - (second - second.min()))
    if all(r.meta.get("kind") == "simulated" and "replay_of" not in r.meta for r in (a, b)):
        same = bool(apart.max() <= 1e-9 * max(1.0, first.max()))
    else:
        same = bool(np.median(apart) <= 0.5 * np.ptp(first) / len(first) + 0.05)
    return None if same else "they come at other times"


def _iterations(a: RunRecords, b: RunRecords) -> dict[str, dict[int, dict[str, Any]]]:
    """Per worker ("unet of 512x512" where requests have shapes, "... on 4 devices" where a group computed it) and
    batch size: the median and the mean period of an iteration in each run, what the table of the first run's profile
    says, all in milliseconds, and the period over the table, of means where the table holds means and of medians
    where it holds medians (*statistic*).
    """
    first, second = (periods(run.folder, run.shapes) for run in (a, b))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, sizes in first.items():
        worker, shape, degree = key
        table, statistic = _table_of(a, *key)
        name = worker if shape is None else f"{worker} of {shape}"
        name += f" on {degree} devices" if degree > 1 else ""
        of = median if statistic == "median" else fmean
        for n, seconds in sorted(sizes.items()):
            other = second.get(key, {}).get(n)
            expected = table.get(n)
            found.setdefault(name, {})[n] = {
                "first": 1e3 * median(seconds),
                "second": 1e3 * median(other) if other else None,
                "first_mean": 1e3 * fmean(seconds),
                "second_mean": 1e3 * fmean(other) if other else None,
                "table": 1e3 * expected if expected else None,
                "statistic": statistic if expected else None,
                "first_over_table": of(seconds) / expected if expected else None,
                "second_over_table": of(other) / expected if other and expected else None,
                "samples": len(seconds),
            }
    return found


def over_profile(run: RunRecords) -> dict[str, float]:
    """By worker, what the iterations and engine steps of *run* took in all over what its profiles say of the same
    ones; without workers of which they say nothing. Raises `BadInput` if the records are not what they must be."""
    if not (run.folder / "batches.jsonl").is_file():
        return {}
    took: dict[str, float] = defaultdict(float)
    told: dict[str, float] = defaultdict(float)
    for key, sizes in periods(run.folder, run.shapes).items():
        worker = key[0]
        table, statistic = _table_of(run, *key)
        of = median if statistic == "median" else fmean
        for n, seconds in sizes.items():
            if expected := table.get(n):
                took[worker] += len(seconds) * of(seconds)
                told[worker] += len(seconds) * expected
    steps = compare_llm_runs.steps(batch_lines(run.folder), iter(()), compare_llm_runs.tables_of(run.meta))
    for worker, kinds in steps.items():
        for own in (sides["first"] for sides in kinds.values()):
            if own["over_table"]:
                seconds_of = own["steps"] * own["mean_ms"] / 1e3
                took[worker] += seconds_of
                told[worker] += seconds_of / own["over_table"]
    return {worker: took[worker] / told[worker] for worker in took if told[worker]}


def statistic_of(text: str) -> str:
    """Whether a table that says *text* of its statistic is to be held against medians or against means."""
    return "median" if text.startswith("median") else "mean"


def periods(folder: Path, shapes: Mapping[int, Shape] = MappingProxyType({})) -> dict[Key, dict[int, list[float]]]:
    """Per worker, shape of its requests (None: *shapes* has none of them), degree and batch size: the periods of
    iterations in seconds, start to start, during which nobody joined or left, and the network ran for all. In a group
    of devices a request may wait between two of them: there an iteration counts from its start to its end.
    """
    found: dict[Key, dict[int, list[float]]] = {}
    last: dict[str, tuple[list[int], float]] = {}
    for record in batch_lines(folder):
        if "prefill" in record:
            continue  # an LLM's step
        worker, requests, ends = record["worker"], record["requests"], record.get("ends", [record["end"]])
        starts = [record["start"], *ends[:-1]]
        before = last.get(worker)
        devices = record.get("devices")
        key = worker, shapes.get(requests[0]) if requests else None, len(devices or (0,))
        sizes = found.setdefault(key, {}).setdefault(len(requests), [])
        if devices is not None:
            count = record["iterations"]
            sizes += [(record["end"] - record["start"]) / count] * count
            continue
        if before is not None and before[0] == requests:
            sizes.append(starts[0] - before[1])
        sizes += [b - a for a, b in pairwise(starts)]
        # Where predictions are reused, another number of requests is computed than the batch holds.
        last[worker] = ([] if record.get("reused") else requests, starts[-1])
    return {key: {n: p for n, p in sizes.items() if p} for key, sizes in found.items() if any(sizes.values())}


def _table_of(run: RunRecords, worker: str, shape: Shape | None, degree: int) -> tuple[dict[int, float], str]:
    """The profile's measured period of an iteration of *worker* by batch size, of requests of that *shape* on
    so many devices, empty if it cannot be had; and whether it is a mean or a median.
    """
    from servetwin.profiles import load

    from ...assembly.replicas import expanded
    from ...spec.experiment import Experiment

    try:
        experiment = expanded(Experiment.model_validate(run.meta["experiment"]))
        loops = [m for m, spec in experiment.pipeline.modules.items() if spec.loop]
        (spec,) = (w for w in experiment.deployment.workers if (w.name or "+".join(w.modules)) == worker)
        (loop,) = (m for m in spec.modules if m in loops)
        profile = load(experiment.deployment.devices[spec.device or ""])
        if degree > 1:
            profile = profile.on(degree)
        if shape is not None:
            profile = profile.at(shape)
        kind: Kind = "measured" if profile.has(loop, "measured") else "scheduler"
        table = profile.table(loop, kind)
        statistic = statistic_of(profile.data.modules[loop].tables[kind].statistic)
        return {n: table(n) for n in range(table.smallest, table.largest + 1)}, statistic
    except (KeyError, ValueError, BadInput):
        return {}, "mean"  # of another kind, or its profile is not here


def _percent(run: RunRecords, count: str) -> float | None:
    requests = run.summary["requests"]
    return 100.0 * run.summary[count] / requests if requests else None


def _pair(a: float | None, b: float | None) -> dict[str, float | None]:
    return {"first": a, "second": b, "gap": None if a is None or b is None else b - a}


def _batches(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    shares = [{int(n): k / w["iterations"] for n, k in w["batch_sizes"].items()} for w in (a, b)]
    sizes = sorted({*shares[0], *shares[1]})
    return {
        "mean_batch_size": _pair(a["mean_batch_size"], b["mean_batch_size"]),
        "iterations": [a["iterations"], b["iterations"]],
        "distance": 50.0 * float_sum(abs(shares[0].get(n, 0.0) - shares[1].get(n, 0.0)) for n in sizes),
        "batch_sizes": {n: [100.0 * s.get(n, 0.0) for s in shares] for n in sizes},
    }
