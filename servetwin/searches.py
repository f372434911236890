"""Capacity: the largest rate, the smallest SLO or the fewest replicas that hold a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from . import given
from .errors import Error, spoken
from .sweeps import Progress, heard_by, warn
from .tables import Table, by_column, table_of

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

    from servetwin.experiments.capacity import search as capacity
    from servetwin.experiments.validation.envelope.standing import Standing

    from .given import PolicyLike, Source


class Answer:
    """What one search found: for one *workload* under one *policy* in one *deployment*, the place along *find* up to
    which *target* holds.

    *value* is the last place that holds the target (requests per second, a multiple of a request's latency alone, or
    replicas), *low* and *high* the ends of its 95 % interval, None where none can be given. *verdict* says whether to
    believe it: "confirmed", if runs twice and four times as long agree and the backlog is flat there; else
    "unchecked", if there were no longer runs, "not stable", "not shown to be stable", or "not confirmed"; *backlog*
    is what it does there (docs/guides/sweeps.md); *notes* say why, and what else is to be said. *more* is how much
    more it is than that of the policy *versus* of the search, taken seed by seed, with its ends *more_low* and
    *more_high*; each None where it is not known.
    """

    workload: str
    policy: str
    deployment: str
    find: str
    target: str
    value: float
    low: float | None
    high: float | None
    backlog: str
    notes: list[str]
    more: float | None
    more_low: float | None
    more_high: float | None

    def __init__(self, found: capacity.Answer, find: str) -> None:
        self._found = found
        self.find = find
        self.workload, self.policy, self.deployment = found.workload, found.policy, found.deployment
        self.target = found.found.target.name
        self.value = found.found.value
        self.low, self.high = found.found.low, found.found.high
        self.backlog = found.stable.backlog
        self.notes = list(found.found.notes)
        gap = found.beside
        ends = (gap.mean, gap.low, gap.high) if gap is not None else (None, None, None)
        self.more, self.more_low, self.more_high = ends

    @property
    def verdict(self) -> str:
        """Whether to believe it, in a word."""
        if self._found.twice is None:
            return "unchecked"
        if self.backlog != "flat":
            return "not shown to be stable" if self.backlog == "unclear" else "not stable"
        return "confirmed" if self._found.twice else "not confirmed"

    @property
    def tried(self) -> Table:
        """The places that were looked at: *place*, and by how much the target was exceeded there (*margin*, below 0
        if it was not held: a share of the requests, or of a limit on a mean), with *low* and *high* of its 95 %
        interval."""
        tried = self._found.found.tried
        return table_of(
            {"place": place, "margin": i.mean, "low": _finite(i.low), "high": _finite(i.high)}
            for place, i in sorted(tried.items())
        )

    @property
    def validity(self) -> Standing:
        """Where the answer stands against the recorded runs by which the simulation was validated."""
        from servetwin.experiments.validation.envelope import standing

        return standing.of(self._found.at)

    def __repr__(self) -> str:
        span = f" ({self.low:.4g} to {self.high:.4g})" if self.low is not None and self.high is not None else ""
        what = f"{self.workload}, {self.policy}: {self.target} up to {self.find}"
        return f"<Answer {what} {self.value:.4g}{span}, {self.verdict}>"


class Search(Table):
    """The *answers* of a search, and their table: *workload*, *policy*, *deployment*, *find*, *target*, *value*,
    *low*,
    *high*, *verdict*, *seeds*, *first_seed*, *places* (that were tried), *requests* (of a run), *warm_up* (requests
    not counted), *settled_after* (requests), *twice_as_long_agrees*, *backlog*, *backlog_growth* (a share of what
    arrives), *notes*; with a policy to compare with *versus*, *more*, *more_low*, *more_high* and *more_in_runs_of*.

    Of a search with one answer *value*, *low*, *high*, *verdict* and *notes* are those of that answer.
    """

    answers: list[Answer]

    def __init__(self, answers: Sequence[Answer], rows: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(by_column(rows))
        self.answers = list(answers)

    @property
    def answer(self) -> Answer:
        """The answer, if there is just one. Raises `Error`."""
        if len(self.answers) != 1:
            raise Error(f"there are {len(self.answers)} answers", where="answer", right="one of `answers`")
        return self.answers[0]

    @property
    def value(self) -> float:
        """The value of the answer."""
        return self.answer.value

    @property
    def low(self) -> float | None:
        """The lower end of its interval."""
        return self.answer.low

    @property
    def high(self) -> float | None:
        """The upper end of its interval."""
        return self.answer.high

    @property
    def verdict(self) -> str:
        """Whether to believe it."""
        return self.answer.verdict

    @property
    def notes(self) -> list[str]:
        """What is to be said of it."""
        return self.answer.notes

    @spoken
    def plot(self) -> Figure:
        """A matplotlib figure: by how much the target is exceeded at the places that were tried, with its interval; a
        line for each answer."""
        from .figures import of_search

        found = [(f"{a.workload}, {a.policy}, {a.target}", a.value, a.tried) for a in self.answers]
        return of_search(found, self.answers[0].find if self.answers else "")


@spoken
def search(
    experiment: Source | Sequence[Source],
    find: str = "rate",
    *,
    target: float | str | Sequence[float | str] = 0.9,
    policy: PolicyLike | Iterable[PolicyLike] | None = None,
    rate: float | None = None,
    cv: float | None = None,
    slo: float | Mapping[str, Any] | None = None,
    requests: int | None = None,
    longest: int | None = None,
    variant: str | None = None,
    deployment: str | Mapping[str, Any] | None = None,
    trace: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: int = 10,
    first_seed: int = 0,
    versus: str | None = None,
    jobs: int = -1,
    cache: bool = True,
    cluster: str | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> Search:
    """Find the capacity of *experiment* (or of each of several), in simulation: the largest "rate", the smallest
    "slo" or the fewest "replicas" that hold each *target*, under each *policy*.

    A target is a share of requests that meet their SLO (0.9), or limits on latencies in milliseconds
    ("p99_ttft_ms<=500"; docs/guides/sweeps.md). The search begins where the experiment stands, which *rate*, *cv*,
    *slo*, *variant*, *deployment*, *trace* and *settings* change as those of `run` do. *requests* is how many a run
    has to begin with (2000 at least unless given), *longest* how many at the most (32000, or 16 times *requests*).
    Each place is run with *seeds* seeds from *first_seed* on. With *versus*, one of several policies, each answer of
    another one says how much more it is, seed by seed. *policy*, *jobs*, *cache*, *cluster*, *progress* and
    *strict* are as in `sweep`.

    Raises `Error` before anything runs, or if the target is held nowhere or everywhere; `TypeError`; `RunError`.
    """
    from servetwin.experiments.capacity import search as capacity
    from servetwin.experiments.capacity import targets
    from servetwin.experiments.sweeps.cache import Cache
    from servetwin.experiments.validation.envelope import standing

    if seeds < 1:
        raise Error(f"{seeds!r} seeds", where="seeds", right="one at least")
    policies = given.Policies()
    sources = [given.source(one, policies) for one in given.several(experiment)]
    limits = [targets.parse(t) if isinstance(t, str) else float(t) for t in given.several(target)]
    names = [policies.setting(one) for one in given.several(policy)] if policy is not None else []
    short: dict[str, Any] = {"rate": rate, "cv": cv, "slo": slo, "variant": variant}
    short |= {"deployment": deployment, "trace": trace}
    overrides = list(given.settings_of(policies, short, settings).items())
    asked = capacity.Asked(find, limits, seeds, first_seed, requests, longest)
    with policies.known(), Cache() if cache else nullcontext() as known:
        found = capacity.answers(
            sources,
            names or None,
            asked,
            overrides,
            jobs=jobs,
            cache=known,
            cluster=cluster,
            versus=versus,
            progress=heard_by(progress),
            say=warn,
            check=standing.strictly(find)[0] if strict else None,
            accept=standing.strictly(find)[1] if strict else None,
        )
    answers = [Answer(one, find) for one in found]
    rows = [_row(a, capacity.row_of(one, asked)) for a, one in zip(answers, found, strict=True)]
    return Search(answers, rows)


def _row(answer: Answer, row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        found[name] = value
        if name == "high":
            found["verdict"] = answer.verdict
    return found


def _finite(x: float) -> float | None:
    return x if abs(x) != float("inf") else None
