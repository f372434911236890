"""From profiles to simulated time: which measured terms a worker's batches are made of.

A profile's costs name what they are of, by module: ``unet.host``, ``unet.leave``, ``vae.time``, and for contention
``unet.device_beside.vae``, or ``unet.device_beside.clip_and_vae`` while both are busy. A worker that serves several
modules goes by its loop, or else by the first. What a profile does not hold falls back to its tables;
docs/reference/profiles.md lists the terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from servetwin.core import BadInput, Batch, Worker, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.groups.group_worker import GroupWorker
from servetwin.core.isolation.code_inspection import own
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.random_streams import stream
from servetwin.core.serving.pool import Pool
from servetwin.core.serving.shaped_worker import ShapedView
from servetwin.profiles import BatchTable, Profile, TokenTable, costs
from servetwin.profiles.llm.recent_load import recent_load_of
from servetwin.profiles.llm.schema import KINDS_OF_TABLE
from servetwin.profiles.tables.cost_names import CostName

from .batch_lane import Rate, Rates
from .device_sharing import HALF, head, refuse, shares, unmeasured
from .executor import SimExecutor
from .llm.lane import Later, StepTimes, TokenTiming
from .llm.shared_lane import KINDS, EngineRates, Kind, RateTable
from .pool_lane import CallTimes
from .time.noise import Slowdown, SlowSpells, Stalls, exponential, from_quantiles, uniform
from .time.out_of_range import HeldTimes, Reach, Watch
from .time.reusing_timing import ReusingTiming
from .time.shaped_timing import ShapedTiming
from .time.timing import Demand, MeasuredTiming, TableTiming, Timing
from .transports import Delay, before_engine, together, transports

Estimate = Callable[[str, int], float]

#: Idle seconds of a whole-request worker that count as a spell: the next batch is a little late in any case.
SHORTEST_SPELL = 0.03


@dataclass(frozen=True)
class TimeOptions:
    """Which terms make up simulated time; each can be switched off to see what it explains.

    *table*: iterations as "measured" in a running system, or as the "scheduler" planned with; of language models also
    "corrected". *costs*: joins, leaves,
    cold starts. *whole*: what batches of whole requests took over what their scheduler expects, with their sessions,
    spread and cold starts (``whole.*``); without it they take the sum of their iterations, as of any other worker.
    *contention*: workers on one device slow each other down. *transport*: requests take time between
    workers. *noise*: drawn from measured residuals and slow periods of the host. *session*: when the run to be
    predicted began, where a profile knows the host's speed on that day. *hold*: sizes beyond a table get its last
    value. *unmeasured*: pairs of workers on one device whose overlap was not measured are "refused", or the device is
    "shared" in time among them, whether *contention* is on or off. ("ignored", which no experiment can ask for, is
    for runs that were recorded and scored before: such workers get the device for nothing.)
    """

    table: str = "measured"
    costs: bool = True
    whole: bool = True
    contention: bool = True
    transport: bool = True
    noise: bool = True
    session: datetime | None = None
    hold: bool = False
    unmeasured: str = "refused"


def _name(worker: Worker, profile: Profile, loop: str) -> str:
    """By which name costs of *loop* go that depend on the policy: that of its class, or, where nothing was measured
    under it, of the nearest class that it is made from."""
    names = [kind.__name__.lower() for kind in type(own(worker.policy)).__mro__]
    known = (n for n in names if {costs.DECIDING_OF(loop, n), costs.GAP_OF(loop, n)} & profile.costs.keys())
    return next(known, names[0])


@dataclass
class WholeTiming:
    """A worker that serves whole requests in static batches: what its scheduler expects of them, times what was
    measured over expected. Batches that are re-formed at every iteration take what *steps* says.

    *ratio* is by batch size (index 0 unused), *spread* draws a factor per batch. After an idle period *cold* seconds
    are added, or *cold_long* if it lasted *long_spell* or more. *slow_spells* are the slow periods of the host.
    *between* is by batch size how long the worker needs after a batch before it can begin the next.
    """

    steps: MeasuredTiming | TableTiming
    expected: Callable[[int, int], float]  # (iterations, size) -> seconds
    ratio: Sequence[float]
    spread: Callable[[], float] | None = None
    cold: float = 0.0
    cold_long: float = 0.0
    long_spell: float = math.inf
    slow_spells: SlowSpells | None = None
    between: Sequence[float] = ()
    draw: Callable[[], float] | None = field(default=None, init=False)
    view: WorkerView | None = field(default=None, init=False)

    @property
    def settled(self) -> bool:
        return self.steps.settled

    def demand(self, batch: Batch, idle: float, now: float) -> Demand:
        if not batch.whole:
            return self.steps.demand(batch, idle, now)
        seconds = self.expected(batch.iterations, batch.size) * self.ratio[batch.size]
        if self.spread is not None:
            seconds *= self.spread()
        if self.slow_spells is not None:
            seconds = self.slow_spells.last(now, seconds)
        if idle > SHORTEST_SPELL:
            seconds += self.cold if idle < self.long_spell else self.cold_long
        return (0.0, seconds, 0.0)

    def plain(self, size: int, now: float, leaves: int = 0) -> Demand:
        return self.steps.plain(size, now, leaves)

    def step(self, size: int, now: float) -> Demand:
        return self.steps.step(size, now)

    def steady_until(self) -> float:
        return self.steps.steady_until()

    def hand_over(self, batch: Batch) -> float:
        return 0.0 if batch.whole else self.steps.hand_over(batch)

    def pause(self, batch: Batch) -> float:
        if batch.whole:
            return self.between[batch.size] if self.between else 0.0
        return self.steps.pause(batch)


class Clock:
    """Builds the timings of workers from the profiles of their devices (device name -> profile)."""

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        options: TimeOptions,
        seed: int,
        preparing: Mapping[str, float] | None = None,
        tables: Mapping[str, Callable[[TokenTable], TokenTable]] | None = None,
        steps: Mapping[str, Callable[[StepTimes], StepTimes]] | None = None,
        swaps: Mapping[str, Callable[[int], float]] | None = None,
    ) -> None:
        self.profiles = profiles
        self.preparing = preparing or {}
        self.tables, self.steps, self.swaps = tables or {}, steps or {}, swaps or {}
        self.options = options
        self.seed = seed
        self.watch = Watch()
        self._worker = ""  # whose tables are being read
        self.kinds = ("scheduler",) if options.table == "scheduler" else ("measured", "scheduler")

    def timing(self, worker: Worker) -> Timing | TokenTiming | dict[int, Timing]:
        if isinstance(worker, TokenWorker):
            return self._engine(worker)
        self._worker = worker.name
        profile = self.profiles[worker.device]
        if isinstance(worker, GroupWorker):
            return {degree: self._by_shape(worker, profile.on(degree)) for degree in worker.degrees}
        timing = self._by_shape(worker, profile)
        actions = worker.stage.actions
        if actions is not None and actions.reuse:
            return ReusingTiming(timing, self.reuse(worker))
        return timing

    def _by_shape(self, worker: Worker, profile: Profile) -> Timing:
        """The timing of batches of *worker* by *profile*, of each shape if its requests have some."""
        if not isinstance(worker.view, ShapedView):
            return self._batches(worker, worker.view, profile)
        views = worker.view.views
        return ShapedTiming({s: self._batches(worker, view, profile.at(s)) for s, view in views.items()})

    def reuse(self, worker: Worker) -> list[float]:
        """What a step takes at *worker* that reuses a prediction, over one that is computed, by the requests in it.
        Raises `BadInput` where nobody measured that."""
        profile, loop, most = self.profiles[worker.device], head(worker.stage), worker.view.limit
        name = costs.REUSE(loop)
        if not self._has(profile, name):
            what = f"it does not know what a step of {loop} takes that reuses a prediction"
            right = f"the cost {name}, as servetwin profile measures it, or reuse: false"
            raise BadInput(what, where=f"{profile.name}: costs", right=right)
        return profile.cost(name).upto(most, name=f"{profile.name}: {name}", hold=True)

    def _batches(self, worker: Worker, view: WorkerView, profile: Profile) -> Timing:
        """The timing of batches of *worker* as *view* shows it, by *profile*."""
        stage, sizes = worker.stage, range(1, view.limit + 1)
        if stage.loop is None:
            return self._once(worker, profile, sizes)
        steps = self._loop(worker, profile, sizes)
        alone = set(stage.modules) == set(profile.modules)
        if alone and self.options.whole and self._has(profile, costs.WHOLE_RATIO()):
            return self._whole(worker, view.estimate, profile, sizes, steps)
        return steps

    # -- one kind of worker each ---------------------------------------------------------------------------

    def _engine(self, worker: TokenWorker) -> TokenTiming:
        profile, options = self.profiles[worker.device], self.options
        kinds = KINDS_OF_TABLE.get(options.table, ("scheduler",))
        table = profile.tokens(*kinds, hold=options.hold, between=options.costs)
        if worker.name in self.tables:
            table = self.tables[worker.name](table)
        times: StepTimes = table
        if options.hold:
            times = HeldTimes(table, worker.name)
            self.watch.engines.append(times)
        if worker.name in self.steps:
            times = self.steps[worker.name](times)
        if worker.host is None and profile.token_data.engine.asynchronous and self._has(profile, costs.BEGINS()):
            times = Later(times, profile.cost(costs.BEGINS()).scalar() if options.costs else 0.0)
        return TokenTiming(
            times,
            self._residual(worker, profile, "decode"),
            swap=self.swaps.get(worker.name) or (swap_of(profile) if options.costs else None),
            prefills=self._residual(worker, profile, "prefill"),
            preparing=self.preparing.get(worker.name, 0.0),
            counted=options.hold,
            stalls=stalls_of(profile, self.seed if options.noise else None, worker.name) if options.costs else None,
            recent_load=recent_load_of(profile.costs) if options.costs else None,
            slowdown=slowdown_of(profile, self.seed if options.noise else None, worker.name)
            if options.costs
            else None,
        )

    def _residual(self, worker: Worker, profile: Profile, module: str) -> Callable[[], float] | None:
        return residual_of(profile, self.seed if self.options.noise else None, worker.name, module)

    def _whole(
        self, worker: Worker, estimate: Estimate, profile: Profile, sizes: range, steps: MeasuredTiming
    ) -> WholeTiming:
        stage = worker.stage
        loop, once = head(stage), (*stage.before, *stage.after)

        def expected(iterations: int, size: int) -> float:
            return iterations * estimate(loop, size) + float_sum(estimate(m, size) for m in once)

        speed = self._session(profile, costs.WHOLE_SESSION())
        # Larger batches than any that was seen keep the ratio of the largest.
        ratio = profile.cost(costs.WHOLE_RATIO()).upto(sizes[-1], name=f"{profile.name}: whole.ratio", hold=True)
        timing = WholeTiming(steps, expected, [r * speed for r in ratio])
        if self.options.costs:
            timing.cold = profile.seconds(costs.WHOLE_COLD(), 0.0)
            timing.cold_long = profile.seconds(costs.WHOLE_COLD_LONG(), timing.cold)
            timing.long_spell = profile.seconds(costs.LONG_SPELL(loop), math.inf)
            if self._has(profile, costs.WHOLE_PAUSE()):
                pauses = profile.cost(costs.WHOLE_PAUSE()).upto(
                    sizes[-1], name=f"{profile.name}: whole.pause", hold=True
                )
                timing.between = pauses
        if self.options.noise and self._has(profile, costs.WHOLE_SPREAD()):
            spread = profile.cost(costs.WHOLE_SPREAD()).quantiles
            assert spread is not None
            timing.spread = from_quantiles(stream(self.seed, f"noise/{worker.name}"), spread.p, spread.values)
        elif self.options.noise:
            timing.slow_spells = self._slow_spells(worker, profile, loop)
        return timing

    def _once(self, worker: Worker, profile: Profile, sizes: range) -> TableTiming:
        name = costs.TIME(head(worker.stage))
        if self._has(profile, name):
            return TableTiming(self._column(profile, name, sizes))
        return TableTiming(self._tables(profile, worker.stage.modules, sizes))

    def _loop(self, worker: Worker, profile: Profile, sizes: range) -> MeasuredTiming:
        stage, loop = worker.stage, head(worker.stage)
        speed = self._session(profile, costs.SESSION(loop))
        if self._has(profile, costs.DEVICE(loop)) and self.options.table == "measured":
            device = self._column(profile, costs.DEVICE(loop), sizes)
            host = self._column(profile, costs.HOST(loop), sizes)
        else:
            device = self._tables(profile, (loop,), sizes)
            if self.options.costs and self.options.table == "measured":
                device = self._decided(worker, profile, loop, device)
            host = [0.0] * len(device)
        timing = MeasuredTiming([h * speed for h in host], device)
        timing.view = worker.view
        if self._has(profile, costs.AHEAD(loop)):
            timing.ahead = self._column(profile, costs.AHEAD(loop), sizes)
        if stage.before:
            timing.before = self._tables(profile, stage.before, sizes)
        if stage.after:
            timing.after = self._tables(profile, stage.after, sizes)
        if self.options.costs:
            self._add_costs(timing, profile, loop)
            timing.deciding = profile.seconds(costs.DECIDING_OF(loop, _name(worker, profile, loop)), timing.deciding)
        if self.options.noise:
            timing.slow_spells = self._slow_spells(worker, profile, loop)
            if self._has(profile, costs.RESIDUAL(loop)):
                residual = profile.cost(costs.RESIDUAL(loop)).quantiles
                assert residual is not None
                timing.draw = from_quantiles(stream(self.seed, f"noise/{worker.name}"), residual.p, residual.values)
        return timing

    def _decided(self, worker: Worker, profile: Profile, loop: str, periods: list[float]) -> list[float]:
        """*periods* with the time between iterations that this worker's policy takes, where that was measured."""
        plain, own = costs.GAP(loop), costs.GAP_OF(loop, _name(worker, profile, loop))
        if not (self._has(profile, plain) and self._has(profile, own)):
            return periods
        most = len(periods) - 1
        extra = (profile.cost(name).upto(most, name=f"{profile.name}: {name}", hold=True) for name in (own, plain))
        return [period + mine - usual for period, mine, usual in zip(periods, *extra, strict=True)]

    def _slow_spells(self, worker: Worker, profile: Profile, loop: str) -> SlowSpells | None:
        if not self._has(profile, costs.SLOW_SHARE(loop)):
            return None
        terms = (costs.SLOW_SHARE, costs.SLOW_SPELL, costs.SLOW_NORMAL, costs.SLOW_FACTOR)
        share, length, normal, slow = (profile.cost(term(loop)).scalar() for term in terms)
        return SlowSpells(stream(self.seed, f"weather/{worker.device}"), share, length, normal, slow)

    def _add_costs(self, timing: MeasuredTiming, profile: Profile, loop: str) -> None:
        timing.join = profile.seconds(costs.JOIN(loop), 0.0)
        timing.deciding = profile.seconds(costs.DECIDING(loop), 0.0)
        if self._has(profile, costs.LEAVE(loop)):
            line = profile.cost(costs.LEAVE(loop)).line
            if line is None:
                raise BadInput(
                    "a leave cost is a line: constant and per_request", where=f"{profile.name}: {loop}.leave"
                )
            timing.leave = (line.constant, line.per_request)
        timing.pausing = profile.seconds(costs.PAUSE(loop), 0.0)
        timing.joins, timing.leaves, timing.pauses = (
            self._crowds(profile, of(loop)) for of in (costs.JOINS, costs.LEAVES, costs.PAUSES)
        )
        timing.cold = self._sequence(profile, costs.COLD(loop))
        timing.cold_long = self._sequence(profile, costs.COLD_LONG(loop)) or timing.cold
        timing.long_spell = profile.seconds(costs.LONG_SPELL(loop), math.inf)

    def _crowds(self, profile: Profile, name: str) -> list[float]:
        """A cost by how many join or leave at once (index 0: nobody), or nothing where there is none."""
        by = profile.cost(name).by_batch if self._has(profile, name) else None
        return [] if by is None else [0.0, *profile.cost(name).upto(by.batch[-1], name=f"{profile.name}: {name}")[1:]]

    # -- reading profiles ----------------------------------------------------------------------------------

    def _has(self, profile: Profile, cost: str) -> bool:
        return cost in profile.costs

    def _column(self, profile: Profile, cost: str, sizes: range) -> list[float]:
        by = profile.cost(cost).by_batch
        if by is not None:
            self._reach(f"{profile.name}: {cost}", by.batch[-1], sizes)
        return [
            math.nan,
            *profile.cost(cost).upto(sizes[-1], name=f"{profile.name}: {cost}", hold=self.options.hold)[1:],
        ]

    def _tables(self, profile: Profile, modules: Sequence[str], sizes: range) -> list[float]:
        tables = [profile.table(m, *self.kinds, hold=self.options.hold) for m in modules]
        for table in tables:
            self._reach(table.name, table.largest, sizes)
        return [math.nan, *(float_sum(table(n) for table in tables) for n in sizes)]

    def _reach(self, table: str, largest: int, sizes: range) -> None:
        """Note that batches beyond the *largest* that a *table* has will be held, if there can be any."""
        if self.options.hold and largest < sizes[-1]:
            self.watch.reaches.append(Reach(self._worker, table, largest))

    def _sequence(self, profile: Profile, cost: str) -> list[float]:
        """A cost by iteration (1 is the first) as a list."""
        if not self._has(profile, cost):
            return []
        by = profile.cost(cost).by_batch
        return list(by.values) if by is not None else [profile.cost(cost).scalar()]

    def _session(self, profile: Profile, name: str) -> float:
        if self.options.session is None or not self._has(profile, name):
            return 1.0
        return profile.cost(name).scalar(self.options.session)

    # -- between workers -----------------------------------------------------------------------------------

    def contention(self, workers: Sequence[Worker]) -> dict[tuple[str, ...], Rates]:
        rates: dict[tuple[str, ...], Rates] = {}
        for a in workers:
            profile = self.profiles[a.device]
            neighbours = [b for b in workers if b is not a and b.device == a.device]
            for others in (*itertools.combinations(neighbours, 1), *itertools.combinations(neighbours, 2)):
                # In the order of the pipeline, whatever that of the workers; engines have modules of their own names.
                heads = {head(b.stage) for b in others}
                one, beside = head(a.stage), [m for m in profile.modules if m in heads] or sorted(heads)
                if self._has(profile, costs.BESIDE(one, beside)):
                    key = (a.name, *(b.name for b in others))
                    rates[key] = (
                        self._rate(profile, costs.HOST_BESIDE, costs.HOST_BESIDE_BATCH, one, beside),
                        self._rate(profile, costs.BESIDE, costs.BESIDE_BATCH, one, beside),
                    )
        return rates

    def engines(self, workers: Sequence[Worker]) -> dict[str, EngineRates]:
        """The rates of engines that have a neighbour on their device, by name. Raises `BadInput` unless the profile
        holds them, or where there are more than two: only pairs are measured."""
        found: dict[str, EngineRates] = {}
        for worker in workers:
            here = [w for w in workers if w.device == worker.device]
            if not isinstance(worker, TokenWorker) or len(here) < 2:
                continue
            profile = self.profiles[worker.device]
            names = ", ".join(w.name for w in here)
            if len(here) > 2 or not all(isinstance(w, TokenWorker) for w in here):
                what = f"{names} share a device, but contention is known for two engines only"
                raise BadInput(what, where="deployment.workers", right="two engines a device, or a device for each")
            found[worker.name] = {(own, other): self._beside(profile, own, other) for own in KINDS for other in KINDS}
        return found

    def _beside(self, profile: Profile, own: Kind, other: Kind) -> RateTable:
        """The profile's costs ``own.rate_beside.other.SIZE``, by the size of a step of *own*."""
        found = costs.RATE_BESIDE.sizes(profile.costs, own, other)
        columns = {size: by for size, name in found.items() if (by := profile.cost(name).by_batch) is not None}
        if not columns:
            return HALF  # not measured: they share the device in time
        if not self.options.contention:
            return RateTable((1,), (1,), ((1.0,),))
        others = sorted(columns)
        sizes = [columns[n].batch for n in others]
        if any(tuple(size) != tuple(sizes[0]) for size in sizes):
            what = f"{costs.RATE_BESIDE(own, other, '*')} are given for different sizes"
            raise BadInput(what, where=profile.name, right="the same for all")
        values = [columns[n].values for n in others]
        return RateTable(tuple(sizes[0]), tuple(others), tuple(zip(*values, strict=True)))

    def _rate(self, profile: Profile, in_ones: CostName, in_batches: CostName, one: str, beside: list[str]) -> Rate:
        name = in_ones(one, beside)
        if not self._has(profile, name):
            return 1.0
        if profile.cost(name).by_batch is None:
            return profile.cost(name).scalar()
        # By the loop's batch; for larger batches of the last stage there are tables of their own.
        found = {1: self._by_loop(profile, name)}
        for size, other in in_batches.sizes(profile.costs, one, beside).items():
            found[size] = self._by_loop(profile, other)
        if len(found) == 1:
            return found[1]
        sizes = sorted(found)
        rows = [[found[m][n] for m in sizes] for n in range(1, min(len(column) for column in found.values()))]
        return [[1.0], *([1.0, *BatchTable(sizes, row).upto(sizes[-1])[1:]] for row in rows)]

    def _by_loop(self, profile: Profile, name: str) -> list[float]:
        cost = profile.cost(name)
        assert cost.by_batch is not None
        return [1.0, *cost.upto(cost.by_batch.batch[-1], name=f"{profile.name}: {name}", hold=True)[1:]]

    def delays(self, workers: Sequence[Worker]) -> dict[tuple[str | None, str], Delay]:
        delays: dict[tuple[str | None, str], Delay] = {}
        for target in workers:
            profile = self.profiles[target.device]
            for source in (None, *workers):
                found = [self._delay(profile, name) for name in transports(source, target, profile)]
                if source is None and costs.BEFORE_ENGINE() in profile.costs:
                    found.append(before_engine(profile.cost(costs.BEFORE_ENGINE())))
                if found:
                    delays[source.name if source else None, target.name] = together(found)
        return delays

    def _delay(self, profile: Profile, name: str) -> Delay:
        cost = profile.cost(name)
        if self.options.noise and cost.quantiles is not None:
            draw = from_quantiles(stream(self.seed, name), cost.quantiles.p, cost.quantiles.values)
            return lambda _: draw()
        seconds = cost.scalar()
        return lambda _: seconds


def swap_of(profile: Profile) -> Callable[[int], float] | None:
    """Seconds in which so many KV blocks move between device and host; None if *profile* does not say it."""
    if costs.SWAP() not in profile.costs:
        return None
    cost = profile.cost(costs.SWAP())
    line = cost.line
    if line is None:
        each = cost.scalar()
        return lambda blocks: each * blocks
    return lambda blocks: line.constant + line.per_request * blocks


def residual_of(profile: Profile, seed: int | None, name: str, kind: str) -> Callable[[], float] | None:
    """Draws with a *seed* of what steps of a *kind* ("prefill", "decode") take over the table on an engine called
    *name*; None without a seed, or where that was not measured."""
    cost = profile.costs.get(costs.RATIO(kind))
    if seed is None or cost is None or cost.quantiles is None:
        return None
    return from_quantiles(stream(seed, f"noise/{name}/{kind}"), cost.quantiles.p, cost.quantiles.values)


def slowdown_of(profile: Profile, seed: int | None, name: str) -> Slowdown | None:
    """The slowdown of the host of an engine called *name* by *profile*, drawn with a *seed*. None without one, or
    where that was not measured."""
    if seed is None or costs.HOST_SLOWDOWN() not in profile.costs or costs.HOST_SLOWDOWN_LASTS() not in profile.costs:
        return None
    # The streams' names are those under which recorded predictions were drawn.
    spread, length = profile.cost(costs.HOST_SLOWDOWN()).quantiles, profile.cost(costs.HOST_SLOWDOWN_LASTS()).scalar()
    assert spread is not None
    draw = from_quantiles(stream(seed, f"pace/{name}"), spread.p, spread.values)
    return Slowdown(draw, exponential(uniform(stream(seed, f"pace/{name}/lasts"))), length)


def stalls_of(profile: Profile, seed: int | None, name: str) -> Stalls | None:
    """How the host of an engine called *name* stands still by *profile*: at random with a *seed*, else as often and
    as long as on average. None where that was not measured."""
    if costs.STALL() not in profile.costs or costs.STALL_EVERY() not in profile.costs:
        return None
    every, stall = profile.cost(costs.STALL_EVERY()).scalar(), profile.cost(costs.STALL())
    spread = None if seed is None else stall.quantiles

    def apart(seconds: float, what: str) -> Callable[[], float]:
        """From one stall to the next: so many *seconds*, on average if they are drawn."""
        if seed is None or spread is None:
            return lambda: seconds
        draw = exponential(uniform(stream(seed, f"stalls/{name}/{what}")))
        return lambda: seconds * draw()

    changing = None
    if costs.STALL_CHANGING() in profile.costs:
        # Where the batch changes stalls are more frequent: those that come on top of the others.
        more = 1.0 / profile.cost(costs.STALL_CHANGING()).scalar() - 1.0 / every
        changing = apart(1.0 / more, "changing") if more > 0.0 else None
    length: Callable[[], float] = stall.scalar
    if seed is not None and spread is not None:
        length = from_quantiles(stream(seed, f"stalls/{name}"), spread.p, spread.values)
    return Stalls(apart(every, "gap"), length, changing)


def measured_executor(
    profiles: Mapping[str, Profile],
    workers: Sequence[Worker],
    options: TimeOptions | None = None,
    *,
    seed: int = 0,
    calls: Mapping[str, CallTimes] | None = None,
    preparing: Mapping[str, float] | None = None,
    tables: Mapping[str, Callable[[TokenTable], TokenTable]] | None = None,
    steps: Mapping[str, Callable[[StepTimes], StepTimes]] | None = None,
    swaps: Mapping[str, Callable[[int], float]] | None = None,
) -> SimExecutor:
    """An executor in which *workers* take the time that was measured on their devices (device name -> profile).

    *calls* gives the times of pools of threads, *preparing* how long engines prepare each prompt, by name;
    *tables* makes of the table of a device's profile that of an engine with options of its own, *steps* of its steps
    (as counted where they are held). *swaps* are seconds in which so many blocks come from the host, where they are
    not the profile's.

    Raises `BadInput` if a profile does not reach as far as a worker's batch limit, unless the options say hold, and
    for workers that share a device if their overlap was not measured, unless the options let them share it in time.
    """
    options = options or TimeOptions()
    clock = Clock(profiles, options, seed, preparing, tables, steps, swaps)
    workers = [w for w in workers if not isinstance(w, Pool)]
    for worker in workers:
        if worker.stage.actions is not None and worker.stage.actions.reuse:
            clock.reuse(worker)  # refused now, not at the first batch
    engines = clock.engines(workers)
    pairs = unmeasured(workers, profiles) if options.unmeasured != "ignored" else []
    if options.unmeasured == "refused":
        refuse(pairs, profiles)
    executor = SimExecutor(
        clock.timing,
        contention=(clock.contention(workers) if options.contention else {}) | shares(pairs),
        shared=[(a.name, b.name) for a, b in pairs],
        engines=engines,
        delays=clock.delays(workers) if options.transport else None,
        calls=calls,
    )
    executor.watch = clock.watch
    return executor
