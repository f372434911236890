"""The workers of an experiment as `servetwin.experiments.bound.stage_loads` wants them: by their measured times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from servetwin.core import Worker
from servetwin.profiles import Profile, costs
from servetwin.sim.device_sharing import head, shares, unmeasured
from servetwin.sim.measured import Clock, TimeOptions, WholeTiming
from servetwin.sim.time.timing import MeasuredTiming
from servetwin.sim.transports import transports

from .stage_loads import Place, Transports


def measured_places(
    workers: Sequence[Worker], profiles: Mapping[str, Profile], options: TimeOptions
) -> tuple[list[Place], Transports]:
    """The *workers* with their least times, whatever their policies, and the least seconds between them.

    With ``options.noise`` the least that can be drawn counts, else what a run without noise takes.
    """
    clock = Clock(profiles, replace(options, noise=False), 0)
    bare = Clock(profiles, replace(options, noise=False, costs=False), 0)
    rates = dict(clock.contention(workers)) if options.contention else {}
    if options.unmeasured == "shared":
        rates |= shares(unmeasured(workers, profiles))
    places = []
    for worker in workers:
        profile, loop = profiles[worker.device], head(worker.stage)
        timing = clock.timing(worker)
        _under_any_policy(timing, bare.timing(worker), profile, loop, options)
        drawn = slow = whole = 1.0
        if options.noise:
            drawn, slow, whole = _least_factors(profile, loop)
        highest = max([1.0, *(r for key, pair in rates.items() if key[0] == worker.name for r in _numbers(pair))])
        alone = sum(w.device == worker.device for w in workers) == 1
        places.append(Place(worker, timing, drawn, slow, whole, highest, alone))  # type: ignore[arg-type]
    return places, _least_transports(workers, profiles, options)


def _under_any_policy(timing: object, plain: object, profile: Profile, loop: str, options: TimeOptions) -> None:
    """Let iterations take what they do under the quickest of the policies whose time between iterations was measured;
    *plain* is the timing without any policy's."""
    if not options.costs or options.table != "measured" or costs.GAP(loop) not in profile.costs:
        return
    steps = timing.steps if isinstance(timing, WholeTiming) else timing
    without = plain.steps if isinstance(plain, WholeTiming) else plain
    assert isinstance(steps, MeasuredTiming)
    assert isinstance(without, MeasuredTiming)
    if costs.DEVICE(loop) in profile.costs:
        return  # then iterations are no periods, and take the same under all policies
    most, stem = len(without.device) - 1, costs.GAP_OF(loop, "")
    names = [costs.GAP(loop), *(name for name in profile.costs if name.startswith(stem))]
    usual, *others = (profile.cost(n).upto(most, name=f"{profile.name}: {n}", hold=True) for n in names)
    less = [min([0.0, *(other[n] - usual[n] for other in others)]) for n in range(most + 1)]
    steps.device = [seconds + change for seconds, change in zip(without.device, less, strict=True)]


def _least_factors(profile: Profile, loop: str) -> tuple[float, float, float]:
    """The least factors that noise may put on an iteration, on host time, and on a batch of whole requests."""

    def least(name: str) -> float:
        cost = profile.costs.get(name)
        return min(cost.quantiles.values) if cost is not None and cost.quantiles is not None else 1.0

    slow = 1.0
    if costs.SLOW_SHARE(loop) in profile.costs:
        slow = min(profile.costs[term(loop)].scalar() for term in (costs.SLOW_NORMAL, costs.SLOW_FACTOR))
    return least(costs.RESIDUAL(loop)), slow, least(costs.WHOLE_SPREAD()) if _spreads(profile) else slow


def _spreads(profile: Profile) -> bool:
    return costs.WHOLE_SPREAD() in profile.costs


def _least_transports(workers: Sequence[Worker], profiles: Mapping[str, Profile], options: TimeOptions) -> Transports:
    found: dict[tuple[str | None, str], float] = {}
    for target in workers if options.transport else ():
        for source in (None, *workers):
            profile, seconds = profiles[target.device], 0.0
            for name in transports(source, target, profile):
                cost = profile.cost(name)
                drawn = cost.quantiles if options.noise else None
                seconds += max(min(drawn.values) if drawn is not None else cost.scalar(), 0.0)
            if seconds > 0.0:
                found[source.name if source else None, target.name] = seconds
    return found


def _numbers(rates: object) -> Iterator[float]:
    """All numbers in nested sequences."""
    if isinstance(rates, float | int):
        yield float(rates)
    elif isinstance(rates, Sequence):
        for part in rates:
            yield from _numbers(part)
