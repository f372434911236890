"""Measured runs of a language model under limits on ttft and tpot, repeated in simulation with their own requests.

A file of such runs (``measured/<device>/runs-*.json.gz``) holds the profile that was taken before them and of each
run its experiment, as `servetwin run --backend vllm` made it (with ``--url``: of servers), and of each request when
it came, its lengths, how it ended, and when its first and its last token came out. A run is repeated as its
experiment says, with the requests as they came. Beside the simulation stand predictions of one line (`trivial`):
whoever simulates must beat them.

``python -m servetwin.experiments.validation.replay.chat [FILE [PROFILE]]`` prints all of that.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import AfterValidator, Field
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum
from servetwin.core.files import plain
from servetwin.core.llm import TokenRequest
from servetwin.core.processes.temporary_folders import temporary_folder
from typing_extensions import TypedDict

from ...assembly import build
from ...registry.catalog import recording_of
from ...spec.experiment import Experiment
from ...spec.keys.host_factors import HostFactors
from ...spec.loading import load
from ..comparison.run_files import OPEN, Time, checked
from . import as_command
from .external import METRICS, Ends, Latencies, Means
from .host_band import on_host
from .llm import MEASURED
from .packed_runs import Name, routers

#: Seeds of the noise over which a run is averaged.
SEEDS = 10
#: What is told of a metric.
STATISTICS: dict[str, Callable[[Any], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "p99": lambda x: np.percentile(x, 99),
}

RIGHT = "runs that ServeTwin packed"

_Tokens = Annotated[int, Field(ge=1, le=10**9)]
_Outcome = Literal["met", "late", "dropped", "failed"]
_Row = tuple[Time, _Tokens, _Tokens, _Tokens, _Outcome, Time | None, Time | None]


def _served(row: _Row) -> _Row:
    """Whoever was served to the end has a first and a last token, in this order, after the arrival."""
    arrival, first, last = row[0], row[5], row[6]
    if row[4] in ("met", "late") and (first is None or last is None or not arrival <= first <= last):
        raise ValueError("a first and a last token after the arrival")
    return row


def _text(source: str) -> str:
    """JSON can hold halves of characters, a file cannot: `UnicodeEncodeError` is a `ValueError`."""
    source.encode()
    return source


class _Worker(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    device: str


class _Deployment(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    workers: Annotated[list[_Worker], Field(min_length=1)]


class _Policy(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: str


class _Experiment(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    policy: _Policy
    deployment: _Deployment


class _Run(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: str
    experiment: _Experiment
    # A row is a list in JSON, and a tuple to its type: not strict, but what it holds is.
    requests: Annotated[list[Annotated[_Row, Field(strict=False), AfterValidator(_served)]], Field(min_length=1)]
    ids: NotRequired[list[Annotated[int, Field(ge=0)]]]
    cached: NotRequired[list[Annotated[int, Field(ge=0)] | None]]


class _Packed(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]
    profile: str
    runs: Annotated[list[_Run], Field(min_length=1)]
    files: NotRequired[dict[Name, Annotated[str, AfterValidator(_text)]]]


@dataclass(frozen=True)
class ChatRun:
    """A run: its *experiment* (content of the file, without devices), and of each request, in the order of arrival,
    (arrival, prompt, limit, output, outcome, first token, last token); the last two are nan where none came. *files*
    are routers of users, by name. Of engines that cache prefixes there are besides, request by request, the *ids* by
    which the experiment draws what their prompts begin with, and the tokens that each found, *cached* (None: it was
    never admitted)."""

    name: str
    experiment: dict[str, Any]
    requests: tuple[tuple[float, int, int, int, str, float, float], ...]
    files: Mapping[str, str] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    cached: tuple[int | None, ...] = ()

    @contextmanager
    def spec(self, profile: str) -> Iterator[Experiment]:
        """The experiment, all its devices by *profile*; it can be run while this lasts."""
        content = json.loads(json.dumps(self.experiment))
        deployment = content["deployment"]
        deployment["devices"] = _devices(content, profile)
        with temporary_folder() as here:
            for of, key in routers(content):
                if of[key] in self.files:
                    router = here / Path(of[key]).name
                    router.write_text(self.files[of[key]], encoding="utf-8")
                    of[key] = str(router)
            yield load(content)

    @property
    def policy(self) -> str:
        """The name of its policy."""
        return str(self.experiment["policy"]["name"])

    @property
    def met(self) -> int:
        """Requests that kept their limits."""
        return sum(row[4] == "met" for row in self.requests)

    @property
    def finished(self) -> int:
        """Requests that were served to the end."""
        return sum(row[4] in ("met", "late") for row in self.requests)

    @property
    def hit_rate(self) -> float | None:
        """The share of prompt tokens that were found in the prefix cache, of requests when first admitted; None if
        there is none."""
        asked = sum(row[1] for row, found in zip(self.requests, self.cached, strict=False) if found is not None)
        return sum(found or 0 for found in self.cached) / asked if asked else None

    @property
    def latencies(self) -> Latencies:
        """Of those that were served to the end."""
        return _latencies([(at, out, a, b) for at, _, _, out, how, a, b in self.requests if how in ("met", "late")])


@dataclass(frozen=True)
class Simulated:
    """What the simulation says of a run: requests that *met* their limits and that *finished* (means over seeds),
    latencies of the latter, as `ChatRun.hit_rate`, and what each seed met."""

    met: float
    finished: float
    latencies: Latencies
    hit_rate: float | None = None
    met_by_seed: tuple[int, ...] = ()


def is_chat(path: Path) -> bool:
    """Whether *path* is a file of such runs."""
    return path.name.startswith("runs-") and path.name.endswith(".json.gz")


def recordings() -> list[Path]:
    """The files that come with ServeTwin."""
    return sorted(path for path in MEASURED.rglob("runs-*.json.gz") if is_chat(path))


def read(path: Path) -> tuple[str, list[ChatRun]]:
    """The profile and the runs of a file that `pack` wrote. Raises `BadInput`."""
    try:
        with gzip.open(plain(path), "rt", encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise BadInput(f"are no runs as they should be: {error}", where=str(path), right=RIGHT) from None
    checked(data, _Packed, str(path), RIGHT)
    files = data.get("files", {})
    for run in data["runs"]:
        for key in ("ids", "cached"):
            if len(run.get(key, run["requests"])) != len(run["requests"]):
                what = f"{run['name']} has {len(run['requests'])} requests, and {key} of {len(run[key])}"
                raise BadInput(what, where=str(path), right=RIGHT)
        for of, key in routers(run["experiment"]):
            if of[key] not in files:
                what = f"the router {of[key]!r} of {run['name']} is not among its files"
                raise BadInput(what, where=str(path), right=RIGHT)
    return data["profile"], [
        ChatRun(
            run["name"],
            run["experiment"],
            tuple((*row[:5], *(math.nan if x is None else x for x in row[5:])) for row in run["requests"]),
            files,
            tuple(run.get("ids", ())),
            tuple(run.get("cached", ())),
        )
        for run in data["runs"]
    ]


def simulate(run: ChatRun, profile: str, seeds: int = 1, host: float | HostFactors | None = None) -> Simulated:
    """*run* by *profile*, with so many seeds of the noise; on another *host* than the profile's."""
    met = finished = 0.0
    by_seed: list[int] = []
    rates: list[float] = []
    rows: list[tuple[float, int, float, float]] = []
    with run.spec(profile) as experiment:
        llms = [*experiment.pipeline.llms]
        if len(llms) != 1:
            raise BadInput(f"it has {len(llms)} language models", where=run.name, right="a run of one language model")
        begin = _beginnings(run, experiment)
        experiment = on_host(experiment, host)
        for seed in range(seeds):
            log = Ends()
            made = build.build(experiment.model_copy(update={"seed": experiment.seed + seed}), log)
            made.source = iter(_requests(run, llms[0], begin))
            summary = made.play()
            rate = summary.as_dict().get("prefix_cache_hit_rate")
            rates += [rate] if rate is not None else []
            by_seed.append(summary.met)
            met += summary.met / seeds
            finished += summary.finished / seeds
            rows += [(run.requests[i][0], run.requests[i][3], *ends) for i, ends in sorted(log.ends.items())]
    rate = float(np.mean(rates)) if rates else None
    return Simulated(met, finished, _latencies(rows), rate, tuple(by_seed))


def _beginnings(run: ChatRun, experiment: Experiment) -> Sequence[Any]:
    """What the prompts of *run* begin with, request by request, as its experiment draws it. Raises `BadInput` if that
    draws other requests."""
    if not run.ids:
        return [None] * len(run.requests)
    drawn: Any = {request.id: request for request in build.build(experiment).source or ()}
    if missing := [number for number in run.ids if number not in drawn]:
        what = f"its experiment draws no request {missing[0]}"
        raise BadInput(what, where=run.name, right="runs with the requests of their experiments")
    return [drawn[number].prefix for number in run.ids]


def _requests(run: ChatRun, module: str, begin: Sequence[Any]) -> Iterator[TokenRequest]:
    for i, ((at, prompt, limit, output, *_), prefix) in enumerate(zip(run.requests, begin, strict=True)):
        yield TokenRequest(i, at, {module: (prompt, limit)}, {module: output}, prefix=prefix)


def _latencies(rows: Sequence[tuple[float, int, float, float]]) -> Latencies:
    arrival, output, first, last = np.array(rows, dtype=float).reshape(-1, 4).T
    return Latencies(first - arrival, (last - first) / np.maximum(output - 1, 1), last - arrival)


def gap(run: ChatRun, simulated: Simulated) -> float:
    """Points of goodput by which the simulation is off."""
    return 100.0 * (simulated.met - run.met) / len(run.requests)


def means(run: ChatRun, simulated: Simulated) -> list[Means]:
    """Mean, median and 99th percentile of each metric; where nobody was served to the end, None is measured and nan
    simulated."""
    was, said = run.latencies, simulated.latencies
    return [
        Means(
            f"{what} {name}",
            float(of(getattr(was, name))) if was.e2el.size else None,
            float(of(getattr(said, name))) if said.e2el.size else math.nan,
        )
        for name in METRICS
        for what, of in STATISTICS.items()
    ]


def trivial(runs: Sequence[ChatRun]) -> dict[str, list[float]]:
    """Points of goodput by which predictions are off that simulate nothing: that all requests are served in time,
    and, though that has seen the other runs, that a run goes as these do on average."""
    shares = [100.0 * run.met / len(run.requests) for run in runs]
    others = [(float_sum(shares) - share) / max(len(shares) - 1, 1) for share in shares]
    return {
        "all in time": [100.0 - share for share in shares],
        "mean of the other runs": [other - share for other, share in zip(others, shares, strict=True)],
    }


def pack(folder: Path, profile: str, out: Path, took: str) -> list[str]:
    """Write the run folders in *folder* that came to their end to *out*, to be repeated by *profile*; gives those
    that did not. *took* is the profile that they were made with."""
    runs, left = [], []
    files: dict[str, str] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not (place / "summary.json").exists():
            left.append(place.name)
            continue
        content = json.loads((place / "meta.json").read_text(encoding="utf-8"))["experiment"]
        content["deployment"]["devices"] = {}
        content["deployment"].pop("name", None)
        outputs = _drawn(content, took)
        for of, key in routers(content):
            router = Path(of[key])
            files[router.name] = router.read_text(encoding="utf-8")
            of[key] = router.name
        lines = (place / "requests.jsonl").read_text(encoding="utf-8").splitlines()
        rows, ids, cached = [], [], []
        for r in sorted((json.loads(line) for line in lines), key=lambda r: (r["arrival"], r["id"])):
            (stage,) = r["stages"] or [{}]
            ends = (stage.get("first_token"), stage.get("last_token"))
            kept = [None if x is None else round(x, 6) for x in ends]
            rows.append(
                [round(r["arrival"], 6), stage["prompt"], stage["limit"], outputs[r["id"]], r["outcome"], *kept]
            )
            ids.append(r["id"])
            cached.append(stage.get("cached"))
        runs.append({"name": place.name, "experiment": content, "requests": rows})
        if any(
            (worker.get("engine") or {}).get("enable_prefix_caching") for worker in content["deployment"]["workers"]
        ):
            runs[-1] |= {"ids": ids, "cached": cached}
    told = {"profile": profile, "runs": runs, **({"files": files} if files else {})}
    with out.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write(json.dumps(told, separators=(",", ":")).encode())
    return left


def _devices(content: dict[str, Any], profile: str) -> dict[str, str]:
    """The devices of an experiment's workers, all alike."""
    return {worker["device"]: profile for worker in content["deployment"]["workers"]}


def _drawn(content: dict[str, Any], profile: str) -> dict[int, int]:
    """Output tokens by request, as the experiment draws them: of one that was dropped the run does not tell."""
    content = {**content, "deployment": {**content["deployment"], "devices": _devices(content, profile)}}
    drawn: Any = build.build(load(content)).source
    return {r.id: next(iter(r.outputs.values())) for r in drawn}


def lines(path: Path, profile: str | None = None, seeds: int = SEEDS) -> Iterator[str]:
    """What is printed of the runs in *path*, by *profile* (None: their own)."""
    own, runs = read(path)
    gaps, off = [], []
    yield f"{path.parent.name}/{path.name} by {profile or own}"
    for run in runs:
        simulated = simulate(run, profile or own, seeds)
        told = means(run, simulated)
        gaps.append(gap(run, simulated))
        off.append([math.nan if m.off is None else m.off for m in told])
        share = 100.0 / len(run.requests)
        said = f"{share * run.met:.1f} % in time, simulated {share * simulated.met:.1f} ({gaps[-1]:+.1f})"
        yield f"  {run.name}: {said}"
        if run.hit_rate is not None and simulated.hit_rate is not None:
            was, is_ = 100 * run.hit_rate, 100 * simulated.hit_rate
            yield f"    prefix cache: {was:.2f} % of prompt tokens found, simulated {is_:.2f} ({is_ - was:+.2f})"
        for name in METRICS:
            some = [m for m in told if m.what.endswith(name)]
            yield f"    {name}: {', '.join(_one(m) for m in some)}"
    sizes = np.abs(gaps)
    yield f"  goodput: off by {sizes.mean():.2f} points on average, {sizes.max():.2f} at most"
    for name, others in trivial(runs).items():
        yield f"    {name}: {np.abs(others).mean():.2f}, {np.abs(others).max():.2f}"
    for i, m in enumerate(told):
        column = np.array(off)[:, i]
        column = column[~np.isnan(column)]
        if not column.size:
            yield f"  {m.what}: nothing to compare"
            continue
        yield f"  {m.what}: {np.abs(column).mean():.1f} % on average, {np.abs(column).max():.1f} at most"


def _one(m: Means) -> str:
    """A statistic of a run. There is nothing to compare where nobody was served, and no ratio to 0 seconds."""
    was = "nobody" if m.measured is None else f"{1e3 * m.measured:.1f} ms"
    if math.isnan(m.simulated):
        return f"{m.what.split()[0]} {was}, simulated nobody"
    off = f", simulated {1e3 * m.simulated:.1f} ms" if m.off is None else f" {m.off:+.1f} %"
    return f"{m.what.split()[0]} {was}{off}"


def main(arguments: Sequence[str]) -> None:
    files = [recording_of(arguments[0])] if arguments else recordings()
    for file in files:
        for line in lines(file, arguments[1] if len(arguments) > 1 else None):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    as_command.run(main)
