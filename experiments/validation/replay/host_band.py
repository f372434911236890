"""What a run comes to on hosts of other speeds: the band in which its measurement is to be expected.

Where an engine decides a step ahead, a step waits for its launch if the host is slow, and the host of a rented
machine may take 1.0 to 1.6 times as long within minutes (docs/reports/2026-11-h200-full.md). So one prediction is not
enough: `band` repeats the requests of an experiment by each of several hosts, each launching so many times as slow as
when the profile was made (`Time.host`), under the same draws of the noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum
from servetwin.profiles.llm.launch_times import WORDS

from ...assembly import build
from ...spec.experiment import Experiment
from ...spec.keys.host_factors import HostFactors, of_run
from ...spec.loading import load_profiles
from ...sweeps.pool import pooled

if TYPE_CHECKING:
    from .folder import Replay

#: Draws of the noise over which each host is averaged.
SEEDS = 5
#: Points of attainment between the best and the worst host from which the answer hangs on the host.
HANGS = 3.0
#: Points within which a measured run is as it was simulated.
NEAR = 1.0
#: The latencies that are told, in ms.
LATENCIES = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms")
RIGHT = "numbers from 0.05 to 100, as in 1.0,1.3,1.6; or folders of real runs that told their host"


@dataclass(frozen=True)
class OnHost:
    """What a run comes to on a *host*: the share of requests in time, those in time a second, and `LATENCIES` in ms;
    means over *seeds* draws of the noise."""

    host: float | HostFactors
    seeds: int
    attainment: float
    goodput: float
    latencies: dict[str, float | None]

    @property
    def name(self) -> str:
        """The host in words."""
        return told(self.host)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        host = self.host.model_dump() if isinstance(self.host, HostFactors) else self.host
        same = {"seeds": self.seeds, "attainment": self.attainment, "request_goodput": self.goodput}
        return {"host": host, **same, **self.latencies}


def told(host: float | HostFactors) -> str:
    """*host* in words: times as slow, as one graph, piece by piece and kernel by kernel where these differ."""
    if isinstance(host, HostFactors):
        return " / ".join(f"{factor:.2f}" for factor in (host.graph, host.pieces, host.kernels))
    return f"{host:g}"


def hosts_of(text: str) -> list[float | HostFactors]:
    """The hosts that *text* names, with commas between them: a number, or the folder of a real run, whose host it is
    then. Raises `BadInput`."""
    found: list[float | HostFactors] = []
    for item in (part.strip() for part in text.split(",")):
        try:
            number = float(item)
        except ValueError:
            found.append(host_in(Path(item)))
            continue
        if not 0.05 <= number <= 100.0:
            raise BadInput(f"{item} is no speed of a host", where="--host-factor", right=RIGHT)
        found.append(number)
    return found


def host_in(folder: Path) -> HostFactors:
    """The host that the real run in *folder* told. Raises `BadInput` if it did not."""
    said = _said(folder)
    if said is None:
        raise BadInput(f"no real run in {str(folder)!r} told its host", where="--host-factor", right=RIGHT)
    return of_run(said[1])


def _said(folder: Path) -> tuple[str, dict[str, float]] | None:
    """The profile and the factors over it that ``real.json`` in *folder* tells of the host, if it does."""
    try:
        said = json.loads((folder / "real.json").read_text(encoding="utf-8"))["host"]
        factors = {name: float(said["over_profile"][name]) for name in WORDS if name in said["over_profile"]}
        of_run(factors)  # within what a host can be
        return str(said["profile"]), factors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def line_of(folder: Path) -> str | None:
    """What the real run in *folder* told of its host beside its profile, as a line; None if it told nothing."""
    from servetwin.profiles.llm import launch_times

    said = _said(folder)
    return None if said is None else f"{folder.name}: {launch_times.line(said[1], said[0])}"


def by_own_host(found: Replay, row: Mapping[str, Any], seeds: int, jobs: int) -> list[str]:
    """Of a real run that told its host: whether what was measured is explained by that. *row* is its repetition on
    the host of its profile; it is repeated on its own, with as many *seeds* of the noise, in *jobs* processes."""
    from .folder import replay_all

    folder, experiment = found.run.folder, found.experiment
    said = _said(folder)
    if said is None or said[0] not in {profile.name for profile in load_profiles(experiment).values()}:
        return []  # or it is repeated by another profile, beside which nobody told the host
    host = of_run(said[1])
    (again,) = replay_all([replace(found, experiment=on_host(experiment, host))], seeds, jobs=jobs)
    summary = found.run.summary
    was, by_profile, by_host = (100.0 * one["met"] / summary["requests"] for one in (summary, row, again))
    low, high = sorted((by_profile, by_host))
    if abs(by_host - was) <= NEAR:
        which = "as measured: the host explains it"
    elif low - NEAR <= was <= high + NEAR:
        which = "what was measured lies between the two"
    else:
        which = "what was measured lies outside of both: the host does not explain it"
    return [
        f"{folder.name}: its host took {told(host)} times the profile's to launch steps (graph / pieces / kernels); "
        f"{was:.1f} % in time, simulated {by_profile:.1f} on the profile's host and {by_host:.1f} on its own: {which}"
    ]


def on_host(experiment: Experiment, host: float | HostFactors | None) -> Experiment:
    """*experiment*, on *host* (None: as it is)."""
    if host is None:
        return experiment
    time = type(experiment.time).model_validate({**experiment.time.model_dump(), "host": host})
    return experiment.model_copy(update={"time": time})


def band(experiment: Experiment, hosts: Iterable[float | HostFactors], *, jobs: int = 1) -> list[OnHost]:
    """What *experiment* comes to on each of *hosts*, on so many processes (-1: one per core). Its requests are the
    same each time, the noise has `SEEDS` draws. Raises `BadInput` where launches are no part of what is simulated."""
    from joblib import delayed

    hosts = list(hosts)
    seeds = SEEDS if experiment.time.noise else 1
    tasks = [(on_host(experiment, host), k) for host in hosts for k in range(seeds)]
    rows = list(pooled(1 if len(tasks) < 4 else jobs, (delayed(_row)(*task) for task in tasks)))
    return [_mean(host, rows[seeds * i : seeds * (i + 1)]) for i, host in enumerate(hosts)]


def _row(experiment: Experiment, seed: int) -> dict[str, float | None]:
    run = build.build(experiment.model_copy(update={"seed": experiment.seed + seed}))
    if not experiment.workload.in_turns:  # else requests are sent when others have ended
        run.send(build.build(experiment).planned())
    full = run.play().as_dict()
    return {name: full.get(name) for name in ("attainment", "request_goodput", *LATENCIES)}


def _mean(host: float | HostFactors, rows: Sequence[dict[str, float | None]]) -> OnHost:
    def mean(name: str) -> float | None:
        known = [row[name] for row in rows]
        some = [value for value in known if value is not None]
        return float_sum(some) / len(some) if some else None

    share, goodput = mean("attainment"), mean("request_goodput")
    latencies = {name: mean(name) for name in LATENCIES}
    nan = math.nan
    return OnHost(host, len(rows), nan if share is None else share, nan if goodput is None else goodput, latencies)


def verdict(found: Sequence[OnHost]) -> str:
    """Whether what holds the SLO hangs on the host."""
    high = max(found, key=lambda one: one.attainment)
    low = min(reversed(found), key=lambda one: one.attainment)
    points = 100.0 * (high.attainment - low.attainment)
    span = f"{100 * high.attainment:.1f} % in time at {high.name}, {100 * low.attainment:.1f} % at {low.name}"
    if points < HANGS:
        return f"the answer does not hang on the host: {span}"
    return (
        f"the answer hangs on how fast the host is: {span}; `servetwin run --backend vllm` tells the speed of yours"
    )
