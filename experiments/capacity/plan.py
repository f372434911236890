"""The cheapest fleet that serves a load: which device, how many, under which policy and router. ``servetwin plan``.

Every fleet (a kind of device, a policy, a router, a count) serves the same requests under the same seeds. It *holds*
the target if its attainment does with a confidence of 95 %: the lower end of its interval over the seeds is not below
it. It *may* hold it if the upper end is not below it. For each kind, policy and router the least count that holds is
found by halving, then those below it are tried until one surely does not hold. That more replicas serve no worse is
taken for granted there; `every` tries all counts instead, and says where it is not so.

The answer is the fleet that holds at the least dollars per hour. Cheaper ones that may hold are named: so much can be
saved at the most, and more seeds tell. Of several that hold at that price it is the one that meets the most requests,
and a note names the others.

A fleet is on the Pareto front if no other is cheaper and meets as many, or as cheap and meets more. Two of one price
that meet equally many are both on it, or both not. Who is on it is known where all counts were tried, as by `every`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..assembly.build import build, stands_on, time_shared
from ..registry.catalog import suggest
from ..registry.policy_registry import same_policy
from ..spec import yaml_io
from ..spec.experiment import Experiment
from ..spec.keys.field_types import Count, Strict
from ..spec.keys.prices import Power, Price
from ..spec.loading import load, load_profiles, locate
from ..spec.overrides import ByOption
from ..sweeps.point import Row
from ..sweeps.repeat import NothingSent, Repeated, Runner, repeat, seeded
from ..sweeps.statistics import Interval, paired_attainment
from ..workload.seed_effect import check_seeds, depends_on_seed
from .plan_sets import check_sets

#: How sure intervals are.
LEVEL = 0.95

Names = Annotated[list[str], Field(min_length=1)]

#: A router by its name, or all that ``deployment.router`` may say.
Router = str | dict[str, Any]


class Offer(Price):
    """A device that can be had: its *profile*, and what it costs. With a profile for each of several degrees of
    tensor parallelism, what each of its GPUs costs and draws."""

    profile: str | Annotated[dict[Count, str], Field(min_length=1)]


class Kind(Strict):
    """Fleets of one kind: what stands for each device of the experiment, from how many replicas to how many, and what
    else is *set* for them."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    devices: Annotated[dict[str, Offer], Field(min_length=1)]
    counts: Annotated[list[Count], Field(min_length=2, max_length=2)]
    set: dict[str, Any] = Field(default_factory=dict)


class PlanFile(Strict):
    """What is asked: the load and SLO of the experiment that it *extends*, changed by *set*, the attainment to hold
    (*target*, in per cent), *fleets* to choose from, and *policies* and *routers* (by default the experiment's)."""

    extends: str
    set: dict[str, Any] = Field(default_factory=dict)
    target: Annotated[float, Field(gt=0, lt=100)]
    fleets: Annotated[list[Kind], Field(min_length=1)]
    policies: Names | None = None
    routers: Annotated[list[Router], Field(min_length=1)] | None = None
    seeds: Annotated[int, Field(ge=2, le=1000)] = 5

    @property
    def share(self) -> float:
        """The *target* as a share of the requests."""
        return self.target / 100.0


@dataclass
class Fleet:
    """So many (*count*) replicas of a *kind* under a *policy* and a *router* ("" where there is none to choose); from
    *least* to so many if they come and go, which then cost what they cost on average."""

    kind: str
    policy: str
    router: str
    count: int
    dollars_per_hour: float
    attainment: Interval
    point: Repeated
    verdict: str
    front: bool | None = None
    least: int | None = None

    @property
    def cents(self) -> float:
        """`dollars_per_hour` to compare by, in hundredths: three times 0.8 is as dear as 2.4."""
        return round(100.0 * self.dollars_per_hour, 6)

    @property
    def label(self) -> str:
        many = f"{self.count}" if self.least is None else f"{self.least} to {self.count}"
        return f"{many} x {self.kind}, {self.policy}" + (f", {self.router}" if self.router else "")

    def as_row(self) -> Row:
        """For tables and ``--json``."""
        mean = self.point.summary(LEVEL)
        per = ("dollars_per_1000_requests", "dollars_per_million_output_tokens", "met_per_dollar")
        columns = (*per, "utilisation", "energy_kwh", "mean_replicas")
        beside = {name: mean[name] for name in columns if name in mean}
        ends = {"attainment_low": self.attainment.low, "attainment_high": self.attainment.high}
        who = {"fleet": self.kind, "policy": self.policy, "router": self.router or None, "count": self.count}
        share = {"attainment": self.attainment.mean, **ends, "verdict": self.verdict, "front": self.front}
        return {**who, "dollars_per_hour": self.dollars_per_hour, **share, **beside}


@dataclass
class Plan:
    """The *fleets* that were tried, the cheapest first; the one that is *chosen* (None: none holds), cheaper ones
    that may hold (*rivals*), each with how much more of the requests it meets, seed by seed, the *prices* with their
    sources, and *notes*: what of it all was not measured, among them."""

    target: float
    seeds: int
    fleets: list[Fleet]
    chosen: Fleet | None
    rivals: list[tuple[Fleet, Interval | None]]
    prices: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Case:
    """The fleets of one kind, policy and router, by their count."""

    kind: Kind
    policy: str
    router: str
    make: Callable[[int], Experiment]
    tried: dict[int, Fleet] = field(default_factory=dict)


def read(path: Path) -> PlanFile:
    """The plan in the file *path*. Raises `BadInput`."""
    data, text = yaml_io.read(path)
    if not isinstance(data, dict):
        raise BadInput("there is no mapping of keys to values", where=str(path), right="extends: ..., fleets: [...]")
    try:
        found = PlanFile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        line = yaml_io.line_of(text, tuple(first["loc"]))
        key = ".".join(map(str, first["loc"]))
        where = f"{path}:{line}: {key}" if line else f"{path}: {key}"
        if first["type"] == "extra_forbidden":
            known = {**PlanFile.model_fields, **Kind.model_fields, **Offer.model_fields}
            raise BadInput(f"unknown key {str(first['loc'][-1])!r}", where=where, right=suggest(key, known)) from None
        right = "a value" if first["type"] == "missing" else first["msg"].removeprefix("Input should be ")
        if first["loc"][-1] == "counts":
            right = "[least, most], two whole numbers: [1, 3] tries 1 to 3"
        if "profile" in first["loc"]:
            right = "a profile, or one for each degree of tensor parallelism: {1: ..., 2: ...}"
        what = "the key is missing" if first["type"] == "missing" else "the value does not fit"
        raise BadInput(what, where=where, right=right) from None
    if found.target <= 1.0:
        line = yaml_io.line_of(text, ("target",))
        right = f"{100.0 * found.target:g}" if found.target < 1.0 else "more than 1"
        raise BadInput(f"{found.target:g} is a share", where=f"{path}:{line}: target", right=f"{right}, in per cent")
    for place, kind in enumerate(found.fleets):
        where = f"{path}: fleets.{place}"
        if kind.counts[0] > kind.counts[1]:
            what = f"{kind.counts[0]} is above {kind.counts[1]}"
            raise BadInput(what, where=f"{where}.counts", right="[least, most]")
    tried: dict[str, Sequence[Router]] = {"policies": found.policies or [], "routers": found.routers or []}
    for key, names in tried.items():
        for place, name in enumerate(names):
            if name in names[:place]:
                what = f"{called(name)!r} is named twice"
                raise BadInput(what, where=f"{path}: {key}.{place}", right="each of them once")
    return found


def called(router: Router) -> str:
    """What a *router* is called in a plan's answer: by its name, and what is said of it beside."""
    if isinstance(router, str):
        return router
    beside = {**{k: v for k, v in router.items() if k not in ("name", "params")}, **(router.get("params") or {})}
    told = ", ".join(f"{key} {value}" for key, value in beside.items())
    return f"{router.get('name')}{f' ({told})' if told else ''}"


def plan(path: Path, run: Runner, *, every: bool = False, asked: PlanFile | None = None) -> Plan:
    """The plan in the file *path*, or what is *asked* there, on runs by *run*; *every*: try all counts. Raises
    `BadInput` before anything runs, and if no request is sent under some seed."""
    asked = asked or read(path)
    cases = _cases(asked, path)
    drawn = False
    for case in cases:
        for count in case.kind.counts:
            experiment = case.make(count)
            if experiment.workload.in_turns:
                what = "requests are sent when others are answered, so that each fleet would be sent others"
                raise BadInput(what, where=f"{path}: extends", right="arrivals of their own (poisson, schedule)")
            if depends_on_seed(experiment):
                check_seeds(experiment, asked.seeds, f"{path}: seeds")
                drawn = True
    searches = [(case, _all_counts(case) if every else _least(case, asked.share)) for case in cases]
    wanted = {place: next(search) for place, (_, search) in enumerate(searches)}
    while wanted:
        points = [(place, searches[place][0].make(n)) for place, counts in wanted.items() for n in counts]
        found = _repeated([experiment for _, experiment in points], run, asked.seeds)
        try:
            for (place, experiment), point in zip(points, found, strict=True):
                _keep(searches[place][0], experiment, point, asked.share)
        except NothingSent as error:
            where = f"{path}: {'set' if asked.set else 'extends'}: workload"
            raise BadInput(error.what, where=where, right=error.right) from None
        following = {}
        for place in wanted:
            counts = next(searches[place][1], None)
            if counts is not None:
                following[place] = counts
        wanted = following
    return _answer(asked, cases, drawn)


def _repeated(experiments: Sequence[Experiment], run: Runner, seeds: int) -> list[Repeated]:
    """Each of *experiments* with so many *seeds*; one of which nothing is drawn is run once, and the same in all."""
    found: dict[int, Repeated] = {}
    for drawn in (True, False):
        places = [place for place, experiment in enumerate(experiments) if depends_on_seed(experiment) == drawn]
        same = repeat([experiments[place] for place in places], run, seeds=seeds if drawn else 1) if places else []
        for place, point in zip(places, same, strict=True):
            point.rows = point.rows if drawn else point.rows * seeds
            found[place] = point
    return [found[place] for place in range(len(experiments))]


def _cases(asked: PlanFile, path: Path) -> list[_Case]:
    base = locate(asked.extends, path.parent)
    check_sets(
        asked.set,
        [kind.set for kind in asked.fleets],
        path,
        policies=bool(asked.policies),
        routers=bool(asked.routers),
    )
    usual = load(base, [*asked.set.items()])
    cases: list[_Case] = []
    for place, said in enumerate(asked.fleets):
        where = f"{path}: fleets.{place}"
        if set(said.devices) != set(usual.deployment.devices):
            right = f"a profile and a price for each of {', '.join(usual.deployment.devices)}"
            raise BadInput(f"it has {', '.join(said.devices)}", where=f"{where}.devices", right=right)
        for degrees, kind in _by_degree(said, where):
            if kind.name in {case.kind.name for case in cases}:
                raise BadInput(f"two fleets are called {kind.name!r}", where=f"{where}.name", right="a name for each")
            cases += _cases_of(kind, degrees, asked, path, where, base, usual)
    return cases


def _by_degree(kind: Kind, where: str) -> Iterator[tuple[dict[str, int], Kind]]:
    """*kind*, or the kinds that it stands for where devices have profiles for several degrees of tensor parallelism,
    each with the degree of these devices: it has the name of that, and costs and draws what so many GPUs do."""
    each = {name: [*offer.profile] for name, offer in kind.devices.items() if not isinstance(offer.profile, str)}
    if not each:
        yield {}, kind
        return
    degrees = next(iter(each.values()))
    for name, own in each.items():
        if {*own} != {*degrees}:
            what = f"it has the degrees {', '.join(map(str, own))}, another device {', '.join(map(str, degrees))}"
            raise BadInput(what, where=f"{where}.devices.{name}.profile", right="the same degrees of each device")
    for degree in degrees:
        devices = {}
        for name, offer in kind.devices.items():
            if isinstance(offer.profile, str):
                devices[name] = offer
                continue
            power = offer.power and Power(busy=degree * offer.power.busy, idle=degree * offer.power.idle)
            source = offer.source if degree == 1 else f"{offer.source} (${offer.per_hour:g} x {degree} GPUs)"
            told = {"profile": offer.profile[degree], "per_hour": degree * offer.per_hour, "source": source}
            devices[name] = offer.model_copy(update={**told, "power": power})
        yield (
            dict.fromkeys(each, degree),
            kind.model_copy(update={"name": f"{kind.name} TP{degree}", "devices": devices}),
        )


def _cases_of(
    kind: Kind,
    degrees: Mapping[str, int],
    asked: PlanFile,
    path: Path,
    where: str,
    base: str | Path,
    usual: Experiment,
) -> Iterator[_Case]:
    """The fleets of *kind*, which stands *where* in the plan, under each policy and router."""
    prices = {name: offer.model_dump(exclude={"profile"}) for name, offer in kind.devices.items()}
    profiles = {name: _anchored(str(offer.profile), path.parent) for name, offer in kind.devices.items()}
    for policy in asked.policies or [usual.policy.name]:
        for at, router in enumerate(asked.routers or [""]):
            said: list[tuple[str, Any]] = [*asked.set.items()]
            said += [(f"deployment.devices.{name}", profile) for name, profile in profiles.items()]
            said += [(ByOption("deployment.prices", f"{where}.devices"), prices)]
            said += [("policy", policy)] if asked.policies else []
            said += [(ByOption("deployment.router", f"{path}: routers.{at}"), router)] if router else []
            said += [(ByOption(key, f"{where}.set.{key}"), value) for key, value in kind.set.items()]

            def make(count: int, said: Sequence[tuple[str, Any]] = tuple(said)) -> Experiment:
                return seeded(load(base, [*said, ("deployment.replicas", count)]))

            least = make(kind.counts[0])
            _check_degrees(least, degrees, where)
            _check_case(least, usual, policy, where)
            yield _Case(kind, policy, called(router), make)


def _check_degrees(experiment: Experiment, degrees: Mapping[str, int], where: str) -> None:
    """Raise `BadInput` if the profile of a device is of another degree of tensor parallelism than the plan says."""
    profiles = load_profiles(experiment)
    for name, degree in degrees.items():
        own = profiles[name].token_data.tensor_parallel
        if own != degree:
            what = f"{profiles[name].name} was taken with tensor_parallel: {own}"
            right = f"a profile with tensor_parallel: {degree}"
            raise BadInput(what, where=f"{where}.devices.{name}.profile.{degree}", right=right)


def _check_case(experiment: Experiment, usual: Experiment, policy: str, where: str) -> None:
    """Raise `BadInput` if the least fleet of a case, with what stands *where* in the plan, cannot be built, or serves
    another load than the *usual* (by way of a variant, say) or by another policy than is said."""
    for key in ("workload", "slo", "seed"):
        if getattr(experiment, key) != getattr(seeded(usual), key):
            what = f"it changes {key}, so that this fleet would be sent other requests than the others"
            raise BadInput(what, where=f"{where}.set", right="what changes the fleet alone")
    if not same_policy(experiment.policy.name, policy):
        what = f"the policy would be {experiment.policy.name}, not {policy}"
        raise BadInput(what, where=f"{where}.set", right="policies: [...], of the plan")
    try:
        build(experiment)
    except BadInput as error:
        place = f"{where}, {policy}" + (f": {error.where}" if error.where else "")
        raise BadInput(error.what, where=place, right=error.right) from None


def _anchored(profile: str, folder: Path) -> str:
    own = profile.endswith((".yaml", ".yml", ".csv"))
    return str((folder / Path(profile).expanduser()).resolve()) if own else profile


def _all_counts(case: _Case) -> Generator[list[int], None, None]:
    yield [*range(case.kind.counts[0], case.kind.counts[1] + 1)]


def _least(case: _Case, target: float) -> Generator[list[int], None, None]:
    """The counts to try next, until it is known from which on fleets hold, and below which they surely do not."""
    low, high = case.kind.counts
    yield sorted({low, high})
    if case.tried[high].attainment.low < target:
        sure = high + 1  # not even the most holds: which may?
    elif case.tried[low].attainment.low >= target:
        return
    else:
        below, sure = low, high
        while sure - below > 1:
            middle = (below + sure) // 2
            yield [middle]
            below, sure = (below, middle) if case.tried[middle].attainment.low >= target else (middle, sure)
    for count in range(sure - 1, low - 1, -1):
        if count not in case.tried:
            yield [count]
        if case.tried[count].attainment.high < target:
            return


def _keep(case: _Case, experiment: Experiment, point: Repeated, target: float) -> None:
    prices, count = experiment.deployment.prices, experiment.deployment.replicas
    assert prices is not None
    found = point.attainment(LEVEL)
    if not depends_on_seed(experiment):  # the run is what it is
        found = Interval(found.mean, found.mean, found.mean, 1)
    verdict = "holds" if found.low >= target else "may hold" if found.high >= target else "does not hold"
    dollars = count * float_sum(price.per_hour for price in prices.values())
    scaler = experiment.deployment.autoscaler
    if scaler is not None:
        dollars = float_sum(row["dollars_per_hour"] for row in point.rows) / len(point.rows)
    told = Fleet(case.kind.name, case.policy, case.router, count, dollars, found, point, verdict)
    told.least = scaler.least if scaler is not None else None
    case.tried[count] = told


def _answer(asked: PlanFile, cases: Sequence[_Case], drawn: bool) -> Plan:
    fleets = [fleet for case in cases for fleet in case.tried.values()]
    fleets.sort(key=lambda f: (f.cents, -f.attainment.mean, f.label))
    whole = all(len(case.tried) == case.kind.counts[1] - case.kind.counts[0] + 1 for case in cases)
    if whole:
        _mark_front(fleets)
    chosen = next((fleet for fleet in fleets if fleet.verdict == "holds"), None)
    most = chosen.cents if chosen is not None else math.inf
    cheaper = [fleet for fleet in fleets if fleet.verdict == "may hold" and fleet.cents < most]
    rivals = [(fleet, _more(fleet, chosen)) for fleet in cheaper]
    notes = [] if drawn else ["nothing is drawn from a seed: each fleet has one run, which is what it is"]
    if not whole:
        notes.append(
            "which fleets are on the Pareto front is not known: not all counts were tried (--every tries them)"
        )
    for case in cases:
        held = [count for count, fleet in sorted(case.tried.items()) if fleet.verdict == "holds"]
        worse = [c for c, fleet in sorted(case.tried.items()) if held and c > held[0] and fleet.verdict != "holds"]
        if worse:
            notes.append(f"{case.tried[held[0]].label} holds, and with {worse[0]} it {case.tried[worse[0]].verdict}")
    notes += [*_as_cheap(fleets, chosen), *_not_measured(cases), *_held([f for f in (chosen, *cheaper) if f])]
    return Plan(asked.share, asked.seeds if drawn else 1, fleets, chosen, rivals, _prices(cases), notes)


def _mark_front(fleets: Sequence[Fleet]) -> None:
    """Say of each of *fleets*, all that there are in their order, whether it is on the Pareto front."""
    best, of_cheaper = -1.0, -1.0
    for _, alike in groupby(fleets, key=lambda f: f.cents):
        for fleet in alike:
            best = max(best, fleet.attainment.mean)
            fleet.front = fleet.attainment.mean == best > of_cheaper
        of_cheaper = best


def _as_cheap(fleets: Sequence[Fleet], chosen: Fleet | None) -> list[str]:
    """Who holds at the price of the *chosen* as well, and why that one was."""
    if chosen is None:
        return []
    others = [f for f in fleets if f is not chosen and f.verdict == "holds" and f.cents == chosen.cents]
    told = [f"{f.label} ({f.attainment.spelled(100.0, 2)} %)" for f in others]
    if not told:
        return []
    equal = any(f.attainment.mean == chosen.attainment.mean for f in others)
    why = "of those that meet as many, the first by name is the answer" if equal else "the answer meets the most"
    return [f"at the same price hold it, too: {'; '.join(told)}: {why}"]


def _not_measured(cases: Sequence[_Case]) -> list[str]:
    """What was not measured of the fleets, as sweeps say it; before what is not so of all, whose it is."""
    whose: dict[str, dict[str, None]] = {}
    for case in cases:
        experiment = case.tried[min(case.tried)].point.experiment
        for line in (*time_shared(experiment), *stands_on(experiment)):
            whose.setdefault(line, {})[case.kind.name] = None
    kinds = {case.kind.name for case in cases}
    return [line if len(own) == len(kinds) else f"{', '.join(own)}: {line}" for line, own in whose.items()]


def _held(fleets: Sequence[Fleet]) -> list[str]:
    """Of which of *fleets* steps went beyond what was measured, where last values may be held."""
    steps = {f.label: sum(int(row.get("steps_beyond_measured") or 0) for row in f.point.rows) for f in fleets}
    return [
        f"{label}: beyond what was measured: {count} steps, for which last values were held"
        for label, count in steps.items()
        if count
    ]


def _prices(cases: Sequence[_Case]) -> list[dict[str, Any]]:
    """What each device costs, and who says so."""
    return [
        {"fleet": kind.name, "device": name, **offer.model_dump(include={"profile", "per_hour", "source"})}
        for kind in {case.kind.name: case.kind for case in cases}.values()
        for name, offer in kind.devices.items()
    ]


def _more(fleet: Fleet, chosen: Fleet | None) -> Interval | None:
    """How much more of the requests the *chosen* meets than *fleet*, as a share, seed by seed."""
    if chosen is None:
        return None
    own, other = ([int(row["met"]) for row in f.point.rows] for f in (fleet, chosen))
    return paired_attainment(own, other, [int(row["requests"]) for row in fleet.point.rows], LEVEL)
