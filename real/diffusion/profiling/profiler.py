"""Takes a profile: measures on this device every term that a simulation of it needs.

Nothing is measured apart from the system: the numbers come from short runs of the serving loop on the lanes that
also serve, so that launching, polling and recording are in them as they are in a run.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from servetwin.core import Policy, Recorder, Request, RunFolder, Shape
from servetwin.core.arithmetic import float_sum
from servetwin.core.processes.temporary_folders import temporary_folder
from servetwin.profiles.verdict import SAMPLES

from ...executor import undisturbed
from ...server import Server, Spell
from .measured import Count, Measured, Progress
from .microbenchmarks import AGES, Cycle, Duel, Estimate, Gather, Rotate, measured_run, workers_of

#: Iterations between two requests that join, and between two that leave, in a running system.
EVERY = 8
#: So few clean iterations of a batch size in the running system are not trusted.
FEW = 8
#: Requests arrive for so many times `seconds` under each policy, at this share of the rate that fills every batch.
ARRIVING, BUSY = 12.0, 0.7
#: With so many steps for each place of a full batch most iterations see nobody come or go: requests that arrive have
#: no fewer.
STEPS_A_PLACE = 5
#: How often whole batches of each size and step count are measured; they have so many steps at least.
WHOLES, WHOLE_STEPS = 5, 8
#: What is measured of long iterations is measured of fewer: of those that would take more than so many seconds, or
#: *seconds* six times.
LONGEST = 1.2
#: Iterations of each batch size, at least: of so many the 99th percentile is not the largest. Of long ones a third;
#: of other shapes, whose tables come from the visits, so many.
STEPS, STEPS_OF_SHAPE = 105, 10
#: Next to batches that take so many seconds it does not matter what the host does between them.
LONG_BATCH = 0.02
#: A visit to all batch sizes lasts about so many times `seconds`; it brings each so many iterations at least and at
#: most, in blocks of so many.
VISIT, VISITED, BLOCK = 6.0, (8, 80), 4
#: There is one after the first of every so many terms.
EVERY_TERM = 2
#: How often it is measured what a policy takes longer where requests wait.
DECIDING = 2
#: Seconds without work after which a loop begins anew.
IDLE = 0.002


class Profiler:
    """Measures *server* as its device named *device*, for batches of up to *limit*: requests of the
    model's own shape, or of that *shape*, of which only the tables are."""

    def __init__(
        self,
        server: Server,
        *,
        limit: int | None = None,
        device: str = "gpu0",
        policies: Mapping[str, Callable[[], Policy]] | None = None,
        seconds: float = 0.4,
        whole_steps: Sequence[int] = (20,),
        once: int | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.server = server
        self.shape = shape
        self.kind = server.kind
        self.limit = limit or server.kind.largest
        self.once = min(once or self.limit, self.limit)  # where a module has no loop
        self.device = device
        self.policies = dict(policies or {})
        self.seconds = seconds  # spent on each point, about
        self.whole_steps = tuple(whole_steps)
        self.found = Measured()
        self.placement = self.kind.placement
        self.stages = ["+".join(group) for group in self.placement]
        self.loop = self.kind.loop
        self.took: dict[str, float] = {}
        self.count = Count({}, None)

    def take(self, *, brief: bool = False, progress: Progress | None = None) -> Measured:
        """Measure everything, or (*brief*) only what a simulation reads. *progress* hears what comes next, how many
        measurements are done, and of how many.
        """
        terms = self._terms(brief)
        names = [measure.__name__.strip("_") for measure in terms]
        self.count = Count(self.counts(brief=brief), progress)
        for done, measure in enumerate(terms):
            self.count.begin(names[done])
            begin = time.monotonic()
            measure()
            if self._visits_after(done):
                self._visit(seed=done)
            self.took[names[done]] = round(time.monotonic() - begin, 2)
        self._settle()
        return self.found

    def _terms(self, brief: bool) -> list[Callable[[], None]]:
        if self.shape is not None:
            return [self._plain, self._modules]
        terms = [
            self._plain,
            self._modules,
            self._running,
            self._arrivals,
            self._whole,
            self._contention,
            self._client,
            self._policies,
        ]
        return terms if brief else [*terms, self._cold]

    def _visits_after(self, term: int) -> bool:
        """Whether there is a visit to all batch sizes after the term of that number; of a shape after each."""
        return term % EVERY_TERM == 0 or self.shape is not None

    def counts(self, *, brief: bool) -> dict[str, int]:
        """How many measurements each term takes, at the most, with the visits."""
        known, names = self._measurements(), [term.__name__.strip("_") for term in self._terms(brief)]
        return {name: known[name] + self._visits_after(i) for i, name in enumerate(names)}

    def _measurements(self) -> dict[str, int]:
        """How many measurements each term takes, at the most."""
        policies = max(len(self.policies), 1)
        single = self._single()
        stages = SAMPLES if self.shape is None else 0
        return {
            "plain": WARM_UP + self.limit,
            "modules": self.once * (len(single) + stages),
            "running": policies,
            "arrivals": policies,
            "whole": 1,
            "contention": len(self._clashes()),
            "client": 1,
            "policies": DECIDING * len(self.policies) if self.limit > 1 else 0,
            "cold": 1 + len(COLD),
        }

    def _single(self) -> list[str]:
        """The modules without a loop that are to be measured; of a shape not those that are fixed."""
        fixed = self.kind.fixed if self.shape is not None else ()
        return [module for module in self.kind.modules if module != self.loop and module not in fixed]

    def _visit(self, seed: int) -> None:
        """Iterations of all batch sizes in changing order, between other measurements.

        The speed of a host changes by the second: what a batch size takes is the mean over visits that are spread
        over the whole time of measuring, and no size is better or worse off than another.
        """
        found = self.found
        sizes = sorted(found.plain)
        times = int(np.clip(VISIT * self.seconds / float_sum(found.period(n) for n in sizes), *VISITED))
        blocks = [n for n in sizes for _ in range(-(-times // BLOCK))]
        random.Random(seed).shuffle(blocks)
        policy = Cycle([n for n in blocks for _ in range(BLOCK)])
        work = {self.loop: len(policy.sizes) + 1}
        spells = self._recorded(policy, [Request(i, 0.01, AGES, work, shape=self.shape) for i in range(policy.most)])
        others = [s.end for s in spells if s.worker != self.loop]
        loop = [s for s in spells if s.worker == self.loop and not s.joins and s.start > max(others, default=-AGES)]
        for spell in loop:
            found.visits.setdefault(spell.size, []).append(spell.end - spell.start)
        for before, spell in itertools.pairwise(loop):
            found.pauses.setdefault(spell.size, []).append(spell.start - before.end)

    def _settle(self) -> None:
        """Let the visits say what iterations and the gaps between them take; of policies the differences count."""
        found = self.found
        usual = found.gap
        found.iteration, found.gap = (dict(sorted(by.items())) for by in (found.visits, found.pauses))
        for by_size in found.policies.values():
            for n, own in by_size.items():
                shift = statistics.fmean(found.gap[n]) - statistics.fmean(usual[n])
                by_size[n] = [max(gap + shift, 0.0) for gap in own]

    def _sizes(self, most: int = 6) -> list[int]:
        """A few batch sizes from 1 to the limit."""
        return sorted({round(x) for x in np.geomspace(1, self.limit, most)})

    def _steps(self, n: int) -> int:
        """How many iterations of *n* requests fill `seconds`."""
        known = [statistics.fmean(v) for k, v in self.found.iteration.items() if k <= n]
        each = max(known, default=0.005)
        return int(np.clip(self.seconds / each, self._fewer(each, STEPS // 3, STEPS), 200))

    def _fewer(self, each: float, least: int, most: int) -> int:
        """How many iterations of *each* so many seconds are measured: *most*, of long ones fewer, down to *least*."""
        return int(np.clip(min(LONGEST, 6 * self.seconds) / each, least, most))

    def _spells(
        self, policies: Sequence[Policy], works: Sequence[int], *, whole: bool = False, **more: Any
    ) -> list[Spell]:
        """What the workers computed in a run of its own."""
        placement = [list(self.kind.modules)] if whole else self.placement
        limit = more.pop("most", self.limit)
        more |= {"limit": limit, "once": self.once, "device": self.device, "shape": self.shape}
        spells = measured_run(self.server, placement, policies, works, **more)
        self.count.one()
        return spells

    def _gather(self, n: int, at_loop: Policy | None = None) -> list[Policy]:
        """All wait until there are *n*; but where that is more than a stage may take, it takes what there is."""
        rest = n if at_loop is None and n <= self.once else 1
        return [(at_loop or Gather(n)) if s == self.loop else Gather(rest) for s in self.stages]

    # -- the terms --------------------------------------------------------------------------------------

    def _plain(self) -> None:
        """Each batch size for some iterations, through all stages."""
        found = self.found
        for _ in range(WARM_UP):  # once for the estimate of how many iterations to run
            self._spells(self._gather(1), [10])
        for n in range(1, self.limit + 1):
            steps = self._steps(n) if self.shape is None else STEPS_OF_SHAPE
            spells = self._spells(self._gather(n), [steps] * n)
            loop = [s for s in spells if s.worker == self.loop]
            found.iteration[n] = found.plain[n] = [s.end - s.start for s in loop[1:-1]]
            found.gap[n] = [b.start - a.end for a, b in _pairs(loop)]
            found.together[n] = loop[0].end - loop[0].start - statistics.fmean(found.plain[n])
            for spell in spells:
                if spell.worker != self.loop and spell.size == n:
                    found.stages.setdefault(spell.worker, {}).setdefault(n, []).append(spell.end - spell.start)

    def _modules(self) -> None:
        """The modules without a loop one by one, as schedulers estimate them; and their stages a few times more."""
        slots = self.server.device_slots(self.device, [self.shape])
        pinned = self.server.pinned if slots.gpu else None
        with torch.no_grad(), undisturbed(slots.gpu, pinned):
            for module in self._single():
                runner = slots.warm(module, self.once)
                rows = runner.rows()
                rows[:, 0] = np.arange(runner.limit)
                for n in range(1, self.once + 1):
                    times: list[float] = []
                    until = time.monotonic() + self.seconds / 2
                    # The first one is not counted.
                    while len(times) <= SAMPLES or (len(times) < 9 and time.monotonic() < until):
                        if pinned is not None:
                            pinned.look()
                        begin = time.monotonic()
                        runner.launch(n, self.shape)
                        if slots.gpu:
                            torch.cuda.synchronize(slots.device)
                        times.append(time.monotonic() - begin)
                    self.found.modules.setdefault(module, {})[n] = times[1:]
                    self.count.one()
        for n in range(1, self.once + 1) if self.shape is None else ():
            until = time.monotonic() + self.seconds
            for times_more in range(SAMPLES):
                for spell in self._spells(self._gather(n), [1] * n):
                    if spell.worker != self.loop and spell.size == n:
                        self.found.stages[spell.worker].setdefault(n, []).append(spell.end - spell.start)
                if times_more + 1 >= SAMPLES - 1 and time.monotonic() > until:
                    break

    def _running(self) -> None:
        """Iterations in a running system: a client, records, and requests that join and leave one by one under each
        policy. What is clean (nobody joins or leaves, no other stage is busy) replaces what `_plain` found.
        """
        found = self.found
        clean: dict[int, list[float]] = {}
        gaps: dict[int, list[float]] = {}
        odd: list[tuple[Spell, bool]] = []  # whether it came after an idle period
        after: list[tuple[Spell, float]] = []
        for name, make in (self.policies or {"": lambda: Gather(1)}).items():
            loop, alone = self._apart(self._served(make()))
            ended = -AGES
            for spell, by_itself in zip(loop, alone, strict=True):
                idle, ended = spell.start - ended > IDLE, spell.end
                if not by_itself:
                    continue
                if not spell.joins and not spell.leaves:
                    clean.setdefault(spell.size, []).append(spell.end - spell.start)
                elif not (spell.joins and spell.leaves):
                    odd.append((spell, idle))
            for before, spell in itertools.pairwise(loop):
                if before.leaves and before.size > before.leaves:
                    after.append((before, spell.start - before.end))
                elif not before.leaves and not spell.joins:
                    for table in (gaps, found.policies.setdefault(name, {}) if name else {}):
                        table.setdefault(spell.size, []).append(spell.start - before.end)
        slower = [statistics.median(v) / statistics.median(found.plain[n]) for n, v in clean.items()]
        for n, plain in found.plain.items():
            if len(clean.get(n, ())) >= FEW:
                found.iteration[n] = clean[n]
            elif slower:
                found.iteration[n] = [d * statistics.median(slower) for d in plain]
            found.gap[n] = gaps.get(n) or found.gap[n]
        for spell, idle in odd:
            extra = spell.end - spell.start - statistics.fmean(found.iteration[spell.size])
            kind = found.leaving if spell.leaves else found.starting if idle else found.joins
            kind.append(extra / (spell.joins or spell.leaves))
        for spell, seconds in after:
            found.leaves.append((seconds - statistics.fmean(found.gap[spell.size])) / spell.leaves)

    def _arrivals(self) -> None:
        """What it costs that some join, or leave, while requests arrive as they do in a run: what an iteration, or
        the gap after it, takes longer than others of its size in the same minute. Where no other stage is busy.

        Most of what a newcomer needs is done while the device computes, and of several at once too: a rotation in
        which they all wait beforehand, or all come to an idle device, shows something else.
        """
        found = self.found
        rng = np.random.default_rng(1)
        each = found.period(self.limit)
        fewest = STEPS_A_PLACE * self.limit
        low, high = (self._fewer(each, min(fewest, n), n) for n in (min(self.whole_steps), max(self.whole_steps)))
        rate = BUSY * self.limit / each / ((low + high) / 2)
        count = int(np.clip(ARRIVING * self.seconds * rate, 8, 600))
        for make in (self.policies or {"": lambda: Gather(1)}).values():
            due = 0.01 + np.cumsum(rng.exponential(1 / rate, count))
            works = rng.integers(low, high + 1, count)
            spells = self._recorded(
                make(),
                [
                    Request(i, float(at), AGES, {self.loop: int(n)})
                    for i, (at, n) in enumerate(zip(due, works, strict=True))
                ],
            )
            loop, alone = self._apart(spells)
            usual: dict[int, list[float]] = {}
            for spell, clean in zip(loop, alone, strict=True):
                if clean and not spell.joins and not spell.leaves:
                    usual.setdefault(spell.size, []).append(spell.end - spell.start)
            gaps = [b.start - a.end for a, b in itertools.pairwise(loop) if a.size > a.leaves == 0]
            if not gaps:
                continue
            ended = -AGES
            for i, spell in enumerate(loop):
                idle, ended = spell.start - ended > IDLE, spell.end
                known = usual.get(spell.size, ())
                if alone[i] and len(known) >= CASES and not idle and (spell.joins == 0) != (spell.leaves == 0):
                    kind, crowd = ("joins", spell.joins) if spell.joins else ("leaves", spell.leaves)
                    extra = spell.end - spell.start - statistics.fmean(known)
                    found.crowds.setdefault(kind, {}).setdefault(crowd, []).append(extra)
                if i + 1 < len(loop) and spell.leaves and spell.size > spell.leaves:
                    extra = loop[i + 1].start - spell.end - statistics.fmean(gaps)
                    found.crowds.setdefault("pauses", {}).setdefault(spell.leaves, []).append(extra)

    def _apart(self, spells: Sequence[Spell]) -> tuple[list[Spell], list[bool]]:
        """Those of the loop in their order, and of each whether no other stage was busy meanwhile."""
        others = [(s.start, s.end) for s in spells if s.worker != self.loop]
        loop = sorted((s for s in spells if s.worker == self.loop), key=lambda s: s.start)
        return loop, [not any(start < s.end and end > s.start for start, end in others) for s in loop]

    def _served(self, policy: Policy) -> list[Spell]:
        """Waves of requests that join one by one, every `EVERY` iterations or so, and leave one by one."""
        n = self.limit
        joins = np.cumsum([0.0, *(EVERY * self.found.period(i) for i in range(1, n))])
        wave = 2.5 * EVERY * float_sum(self.found.period(i) for i in range(1, n + 1))
        waves = int(np.clip(np.ceil(4 * self.seconds / wave), 1, 6))
        requests = [
            Request(k * n + i, 0.01 + k * wave + float(joins[i]), AGES, {self.loop: EVERY * n})
            for k in range(waves)
            for i in range(n)
        ]
        return self._recorded(policy, requests)

    def _recorded(self, policy: Policy, requests: Sequence[Request]) -> list[Spell]:
        """Serve as in a run, with a client and records; *policy* is the loop's."""
        stages = self.kind.pipeline().stages(self.placement)
        policies = [policy if s == self.loop else Gather(1) for s in self.stages]
        workers = workers_of(
            stages, policies, self.limit, self.device, self._estimate(), once=self.once, shape=self.shape
        )
        with temporary_folder() as folder:
            recorder = RunFolder(folder, {})
            spells = self.server.serve(stages, workers, requests, recorder).spells
            recorder.close()
        self.count.one()
        return spells

    def _policies(self) -> None:
        """What policies take longer where requests wait."""
        for name, make in self.policies.items():
            self.found.deciding[name] = self._deciding(name, make)

    def _deciding(self, name: str, make: Callable[[], Policy]) -> float:
        """What the policy takes longer between two iterations for each request that it leaves waiting: while two run,
        others come and wait, so that both are seen within the same moment."""
        if self.limit < 2:
            return 0.0
        alone: list[float] = []
        crowded: list[float] = []
        each = self.found.period(2)
        steps = self._fewer(each, WAITING_STEPS // 3, WAITING_STEPS)
        for _ in range(DECIDING):
            spells = self._spells(
                [make()],
                [2 * steps] * 2 + [1] * WAITING,
                due=[0.0] * 2 + [1.1 * steps * each] * WAITING,
                estimate=self._estimate(),
                most=2,
                only=self.loop,
            )
            loop = spells[: 2 * steps]
            for gaps, some in ((alone, loop[2 : steps - 2]), (crowded, loop[-steps // 2 : -1])):
                gaps += [b.start - a.end for a, b in _pairs(some) if a.size == b.size == 2]
        if not alone or not crowded:
            return 0.0
        return (statistics.median(crowded) - statistics.median(alone)) / WAITING

    def _estimate(self) -> Estimate:
        def estimate(module: str, n: int) -> float:
            if module == self.loop:
                return self.found.period(n)
            return statistics.fmean(self.found.modules[module][min(n, self.once)])

        return estimate

    def head(self, stage: str) -> str:
        """The module by whose name a stage's costs go."""
        modules = stage.split("+")
        return self.loop if self.loop in modules else modules[0]

    def expected(self, steps: int, n: int) -> float:
        """What the scheduler's tables expect of *n* whole requests of *steps* steps."""
        once = float_sum(statistics.median(by_size[n]) for by_size in self.found.modules.values())
        return once + steps * self.found.planned(n)

    def _whole(self) -> None:
        """One worker for the whole pipeline, iterations back to back; batches of all sizes in turn."""
        sizes = sorted({1, 2, 3, 4, *self._sizes(5)} & set(range(1, self.once + 1)))
        kinds = list(
            dict.fromkeys(
                (n, self._fewer(self.found.period(n), min(WHOLE_STEPS, most), most))
                for n in sizes
                for most in self.whole_steps
            )
        )
        rng = random.Random(1)
        first = [(n, 1) for n in sizes]  # not counted
        turns = first + [turn for _ in range(WHOLES) for turn in rng.sample(kinds, len(kinds))]
        policy = Rotate([n for n, _ in turns])
        spells = self._spells([policy], [steps for n, steps in turns for _ in range(n)], whole=True)
        kept = spells[len(first) :]
        for spell in kept:
            took = self.found.whole.setdefault((spell.iterations, spell.size), [])
            took.append(spell.end - spell.start)
        for spell, following in itertools.pairwise(kept):
            self.found.between.setdefault(spell.size, []).append(following.start - spell.end)

    def _clashes(self) -> list[dict[str, int]]:
        """Which stages are measured at once, and the batch of each: pairs; and where there are three, all of them,
        since three at once are not slowed down by what each pair is. Who leads comes first, who stays in ones last.
        """
        if len(self.stages) == 1:
            return []
        at = self.stages.index(self.loop)
        first, after = self.stages[:at], self.stages[at + 1 :]
        loops = sorted({1, 2, *self._sizes(4)} & set(range(1, self.limit + 1)))
        onces = sorted({1, 2, self.once} & set(range(1, self.once + 1)))
        found: list[dict[str, int]] = []
        for n in loops:
            found += [{self.loop: n, other: 1} for other in first]  # short, and nothing to batch
            found += [{self.loop: n, other: m} for other in after for m in onces]
        for early, late in itertools.product(first, after):
            for m in sorted({1, self.once}):
                found.append({late: m, early: 1})
                found += [{self.loop: n, late: m, early: 1} for n in sorted({1, self.limit})]
        return found

    def _contention(self) -> None:
        """Stages that run at once: the rate at which each gets on, against alone, measured before and after; where a
        batch is long, once for all.
        """
        if not (clashes := self._clashes()):
            return
        stages = self.kind.pipeline().stages(self.placement)
        duel = Duel(self.server, stages, self.limit, self.device, self.once)
        known: dict[tuple[str, int], float] = {}

        def period(name: str, n: int) -> float:
            if (name, n) not in known or known[name, n] < LONG_BATCH:
                known[name, n] = duel.periods({name: n}, self.seconds / 4)[name]
            return known[name, n]

        try:
            for sizes in clashes:
                before = {name: period(name, n) for name, n in sizes.items()}
                both = duel.periods(sizes, self.seconds)
                n, m = list(sizes.values())[:2]
                for name, size in sizes.items():
                    key = (name, *(other for other in self.stages if other in sizes and other != name))
                    alone = (before[name] + period(name, size)) / 2
                    self.found.rates.setdefault(key, {})[n, m] = alone / both[name]
                self.count.one()
        finally:
            duel.close()

    def _client(self) -> None:
        """From sent by the client until queued at the first stage, with the loop about half busy."""
        stages = self.kind.pipeline().stages(self.placement)
        workers = workers_of(stages, [Gather(1) for _ in stages], self.limit, self.device, once=self.once)
        log = _Queued()
        gap = 2 * self.found.period(1) + 0.002
        self.server.serve(stages, workers, [Request(i, i * gap, AGES, {self.loop: 1}) for i in range(40)], log)
        self.found.client = log.delays
        self.count.one()

    def _cold(self) -> None:
        """Requests of a few steps after idle periods, against those that come at once."""

        def taken(idle: float, count: int) -> float:
            gap = idle + 3 * (COLD_STEPS + 2) * self.found.period(1)
            spells = self._spells(self._gather(1), [COLD_STEPS] * count, gap=gap)
            loop = [s for s in spells if s.worker == self.loop]
            runs = [loop[i : i + COLD_STEPS] for i in range(0, len(loop) - COLD_STEPS + 1, COLD_STEPS)]
            alone = [run[-1].end - run[0].start for run in runs[1:] if all(s.size == 1 for s in run)]
            return statistics.median(alone) if alone else 0.0  # none alone: the device is too noisy to tell

        usual = taken(0.0, 8)
        for idle, count in COLD:
            self.found.cold[idle] = taken(idle, count) - usual


class _Queued(Recorder):
    """Notes how long requests were under way to their first queue."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.delays.append(request.tasks[0].queued - request.arrival)


def _pairs(loop: Sequence[Spell]) -> Iterable[tuple[Spell, Spell]]:
    """Neighbouring iterations of which the first lets nobody go and the second lets nobody in."""
    return ((a, b) for a, b in itertools.pairwise(loop) if not a.leaves and not b.joins)


#: Steps of the requests that are served after idle periods; these, in seconds, and how many requests after each.
COLD_STEPS = 4
COLD = ((0.05, 6), (0.3, 4), (1.0, 3))
#: Runs before the first that counts.
WARM_UP = 2
#: Requests that are left waiting while a policy's time for each of them is measured, and half the steps of the two
#: others; a third of them where they are long.
WAITING, WAITING_STEPS = 20, 24
#: So many cases of so many requests that join, or leave, at once are enough for a value.
CASES = 3
