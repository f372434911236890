"""Many runs: one experiment along axes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import given
from .errors import Error, spoken
from .tables import Table, by_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from servetwin.experiments.validation.envelope.standing import Standing

    from .given import PolicyLike, Source

#: Sweeps and searches say so far how many runs are done, and of how many.
Progress = Callable[[int, int], None]


def heard_by(progress: Progress | None) -> Callable[..., None] | None:
    """What an engine calls so that *progress* hears of runs; a search does not know from the beginning how many there
    will be."""
    if progress is None:
        return None
    return lambda done, total, *_: progress(done, 2 * done if total is None else total)


class Sweep(Table):
    """The table of a sweep: a row per point, in the order of the axes.

    First come the settings (*workload*, *policy*, *rate*, *cv*, *slo_factor*, *seed*, *deployment*, other axes by
    their keys; *policy.params* as JSON where the axis gives some), then the results: counts in requests (*requests*,
    *met*, *late*, *dropped*, *failed*, *finished*), *attainment* (0 to 1), rates per second (*request_goodput*,
    *request_throughput*), seconds (*duration*, *arrival_span*), latencies in milliseconds (``..._ms``), and batches
    of the worker that runs the loop (*iterations*, *mean_batch_size*, *max_batch_size*); of a language model also
    tokens per second. With *seeds* results are means, and ``..._low`` and ``..._high`` the ends of 95 % intervals.

    *validity* says of each point where it stands against the recorded runs by which the simulation was validated.
    """

    validity: list[Standing]

    @spoken
    def plot(self, *, x: str | None = None, y: str = "attainment", by: str = "policy") -> Figure:
        """A matplotlib figure: column *y* over column *x* (else the first setting that varies), with its interval
        where there are seeds; a line for each value of column *by*, a panel for each setting of what else varies.
        Columns also go by the short names of axes ("slo", "router"). Raises `Error`."""
        from .figures import of_sweep

        return of_sweep(self.to_dicts(), x=x, y=y, by=by)

    @spoken
    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the table to *file*, a .csv or .parquet, as a whole or not at all. Raises `Error`."""
        from servetwin.experiments.sweeps import tables

        path = Path(file).expanduser()
        tables.check_target(path)
        tables.write(path, self.to_dicts(), self.columns)
        return path


@spoken
def sweep(
    experiment: Source | Sequence[str | os.PathLike[str]],
    *,
    policy: PolicyLike | Iterable[PolicyLike] | None = None,
    rate: float | Iterable[float] | None = None,
    cv: float | Iterable[float] | None = None,
    slo: float | Mapping[str, Any] | Iterable[float | Mapping[str, Any]] | None = None,
    requests: int | Iterable[int] | None = None,
    seed: int | Iterable[int] | None = None,
    variant: str | Iterable[str] | None = None,
    deployment: str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]] | None = None,
    trace: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    until: float | None = None,
    most: int = 100,
    versus: PolicyLike | None = None,
    bound: bool = False,
    jobs: int = -1,
    cache: bool = True,
    cluster: str | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> Sweep:
    """Run *experiment* at every combination of what is given as several values (a list, a range, an array), in
    simulation. Arguments are those of `run`; several experiments are an axis too.

    A value of *settings* that is a list is an axis; one that is meant as a list is put into another. With *seeds*
    each point is run with so many seeds, its own and those that follow; with *until* with as many, *most* at the
    most, as it takes to know its attainment to within that share (0.005: half a percentage point, 95 %). *versus*,
    one of the policies, adds columns for how attainment differs from its, seed by seed; *bound* those for the most
    that any schedule could meet, and the share of it that is met (docs/explanation/bound.md).

    *jobs* processes work (-1: one per core), or the *cluster* at that address (docs/guides/sweeps.md). A policy that
    is given as a class or function of this process, or of a notebook, is used as it is here: its points run in this
    process, one after another, and are not kept. Points of policies that are named, or are a file, run in all
    processes, and their rows are taken from the cache and kept there unless *cache* is off. *progress* is called with
    the number of runs that are done, and of all. Where it is *strict*, a point that is outside of what was validated
    by recorded runs is an error.

    Raises `Error` before anything runs, and `TypeError`; `RunError` if a run breaks. Warns where rows cannot be kept.
    """
    from servetwin.experiments.bound import sweep_bounds
    from servetwin.experiments.sweeps import sweep as engine
    from servetwin.experiments.sweeps.cache import Cache
    from servetwin.experiments.validation.envelope.standing import Look

    if until is not None and not 0.0 < until < 0.5:
        raise Error(f"{until!r} is no width", where="until", right="a share of the requests: 0.005")
    policies = given.Policies()
    block: dict[str, Any] = {"set": {}, "grid": {}}
    content = _source(experiment, policies, block)
    short: dict[str, Any] = {"rate": rate, "cv": cv, "slo": slo, "requests": requests, "seed": seed}
    short |= {"variant": variant, "deployment": deployment, "policy": policy, "trace": trace}
    if given.is_axis(trace):
        raise TypeError("trace: a sweep has one (right would be: settings={'workload.arrivals': [{...}, {...}]})")
    _settings(given.settings_of(policies, short, settings, axes=True), block)
    look = Look(strict)
    reference = policies.setting(versus, "versus") if versus is not None else None
    if isinstance(reference, dict):
        raise TypeError("versus: a policy goes by its name here (right would be: the policy without parameters)")
    with policies.known(), Cache() if cache else nullcontext() as known:
        rows = engine.sweep(
            engine.SweepFile(sweeps=[engine.Block(**block)]),
            None,
            of=content,
            jobs=jobs,
            progress=heard_by(progress),
            cache=known,
            cluster=cluster,
            seeds=seeds,
            until=until,
            most=most,
            versus=reference,
            beside=sweep_bounds if bound else None,
            say=warn,
            look=look,
        )
    return _made(rows, look.stands)


def _made(rows: list[dict[str, Any]], stands: list[Standing]) -> Sweep:
    found = Sweep(by_column(rows))
    found.validity = stands
    return found


def _settings(found: Mapping[str, Any], block: dict[str, Any]) -> None:
    """Put what is to be set into *block*: a value, or several, which are an axis."""
    for key, value in found.items():
        if isinstance(value, given.Axis):
            if not value:
                raise Error("there are no values", where=key, right="one at least")
            block["grid"][key] = list(value)
        else:
            block["set"][key] = value


def _source(experiment: Any, policies: given.Policies, block: dict[str, Any]) -> dict[str, Any] | None:
    """Put what *experiment* names into *block*; gives the content of an experiment file, if it is that."""
    if given.is_axis(experiment):
        several = list(experiment)
        if not several or not all(isinstance(one, str | os.PathLike) for one in several):
            raise given.not_an_experiment(experiment)
        block["grid"]["workload"] = [str(given.source(one, policies)) for one in several]
        return None
    found = given.source(experiment, policies)
    if isinstance(found, dict):
        return found
    block["extends"] = str(found)
    return None


def warn(what: str) -> None:
    """Pass on what a sweep or a search says aside; that rows of objects are not kept is known."""
    from servetwin.experiments.registry.policy_objects import DOUBT

    if DOUBT not in what:
        warnings.warn(what, stacklevel=5)
