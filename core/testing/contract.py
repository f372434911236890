"""The contract of policies: what ``servetwin check`` and `assert_policy_contract` hold a policy to.

A policy is played through short scenarios (`servetwin.core.testing.scenarios`), in each of which it may go wrong in
another way: crowds, overload, no deadlines, a single request, little memory. Of each scenario it must be true that

- all invariants hold, and it writes nothing of what it is shown (books are kept of that);
- a new object decides the same again, also beside another one that is asked in turns with it, and wherever its
  requests lie in memory;
- its code reads no clock, draws no randomness that it shares with others, does no input or output;
- nothing that its objects share (attributes of the class, globals, defaults of parameters) is changed;
- what it promised (`Repeat`, `Step.standing`) is what it says when it is asked;
- what is still to come changes nothing: neither later requests, nor how many tokens will really come out;
- requests get on: a single one is served in time, none that runs is given up without a deadline, and none waits for
  as long as others keep coming, unless the class says ``starves = True``.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Any

from ..errors import BadInput, PolicyFault, ServeTwinError
from ..invariants import watchdog
from ..isolation.code_inspection import named, own, raised_at
from ..isolation.integrity import Intact, comes_along, held
from ..llm.policy import TokenPolicy
from ..policy import Policy, PolicyBase
from ..request import Request, Task
from ..routing import WorkerState
from .conduct import Ear, Shared, loaded, uses
from .jobs import Prompt
from .promises import RULE, Asked, Observed, readable
from .scenarios import Scenario, scenarios_for
from .timeline import Play, Played, books, chain

#: Seconds that one call of a policy may take here.
PATIENCE = 5.0
#: So many requests that came later may be served while one waits and gets nowhere.
OVERTAKEN = 60


class NoPolicy(BadInput):
    """What was to be held to the contract is no policy, or the same one again."""


class ContractBroken(PolicyFault):
    """A policy does not keep its contract. *drawing* is the schedule in which that showed, as text, or empty."""

    def __init__(self, what: str, drawing: str = "") -> None:
        super().__init__(what)
        self.drawing = drawing


@dataclass
class Kept:
    """What was found of a policy that keeps its contract: by scenario its requests and decisions; *promises* are the
    decisions that came with a word to repeat them, *skipped* the scenarios that the policy does not serve."""

    policy: str
    scenarios: list[tuple[str, int, int]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    promises: int = 0

    @property
    def decisions(self) -> int:
        return sum(count for _, _, count in self.scenarios)


def assert_policy_contract(policy: Callable[..., Any], **parameters: Any) -> Kept:
    """Raise `AssertionError`, with the schedule drawn as text, unless *policy* keeps the contract of policies.

    *policy* is a class, made anew for each run with these *parameters*, or a function that makes one. Gives what was
    looked at. Raises `BadInput` if it is no policy.
    """
    __tracebackhide__ = True
    try:
        return check_contract(policy, **parameters)
    except ContractBroken as broken:
        drawing = f"\n\n{broken.drawing}" if broken.drawing else ""
        raise AssertionError(f"{broken}{drawing}") from broken.__cause__


def check_contract(policy: Callable[..., Any], **parameters: Any) -> Kept:
    """The same, raising `ContractBroken`: a fault of one line, and its drawing."""
    return hold(lambda: policy(**parameters), policy if isinstance(policy, type) else None, repr(policy))


def hold(make: Callable[[], Any], kind: type | None = None, called: str = "this") -> Kept:
    """Hold what *make* makes, policies of the class *kind* if that is known, to the contract. Raises
    `ContractBroken`; `BadInput` if these are no policies, or the same one twice."""
    made: list[Any] = []

    def new() -> Any:
        policy = make()
        if not isinstance(policy, Policy | TokenPolicy):
            raise NoPolicy(f"{called} gives {policy!r}", right="a class of policies, or a function that makes them")
        if any(policy is other for other in made):
            raise NoPolicy(f"{called} gives the same object twice", right="a new policy at each call")
        made.append(policy)
        return policy

    with _patience(), held() as intact:
        kind, first = _made(new, kind)
        found = Kept(named(first))
        _reads(kind, first)
        shared = Shared(kind)
        for scenario in scenarios_for(kind, first):
            _try(scenario, new, found, shared)
        _keeps_its_hands_off(first, intact)
    if not found.scenarios:
        name, why = found.skipped[0]
        raise ContractBroken(f"{found.policy}: it serves no scenario ({name}: {why})")
    return found


def digest(make: Callable[[], Any]) -> str:
    """A hash of all that a policy that *make* makes says in the crowded scenarios: the same in every process."""
    first = make()
    said = hashlib.sha256()
    for scenario in scenarios_for(type(first), first):
        if scenario.crowded:
            try:
                run = _Run(scenario, make).begin().finish()
            except _Unfit:
                continue
            said.update(repr(run.asked).encode())
    return said.hexdigest()


@contextmanager
def _patience() -> Iterator[None]:
    before, watchdog.SECONDS = watchdog.SECONDS, min(PATIENCE, watchdog.SECONDS)
    try:
        yield
    finally:
        watchdog.SECONDS = before


def _made(make: Callable[[], Any], kind: type | None) -> tuple[type, Any]:
    """The class of what *make* makes, and one of them. Its constructor keeps to the rules, too."""
    ear = Ear(object.__new__(kind) if kind is not None and issubclass(kind, PolicyBase) else object())
    first = ear.hear(make)
    if ear.found is not None:
        what, file, line = ear.found
        at = (file, line) if file else None
        if "input or output" not in what and "operating system" not in what:  # it may read its files here
            raise ContractBroken(f"{named(first, at, '__init__')}: it {what} (right would be: {RULE})")
    return type(own(first)), first


def _reads(kind: type, first: Any) -> None:
    if comes_along(kind):
        return
    used = uses(kind) or loaded(kind)
    if used is not None:
        what, file, line = used
        raise ContractBroken(f"{named(first, (file, line))}: it {what} (right would be: {RULE})")


def _keeps_its_hands_off(policy: Any, intact: Intact) -> None:
    """Raise `ContractBroken` if ServeTwin's own code is not as it was."""
    found = intact.changed()
    if found:
        raise ContractBroken(f"{named(policy)}: it changed {found[0][0]}, which is ServeTwin's")


# -- a scenario ---------------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """The policy says that it does not serve such a system."""


@dataclass
class _Run:
    """A run of a scenario that is under way, or over."""

    scenario: Scenario
    make: Callable[[], Any]
    ear: bool = False
    observed: list[Observed] = field(default_factory=list)
    play: Play | None = None

    def begin(self) -> _Run:
        system = self.scenario.system
        try:
            served = system if self.scenario.tokens else chain(**system)
            self.play = Play(served, self._policy, self.scenario.given, checked=True)
        except NoPolicy:
            raise
        except BadInput as error:
            raise _Unfit(str(error)) from None
        except (Exception, SystemExit) as error:
            self._explain(error)
        return self

    def _policy(self) -> Any:
        self.observed.append(Observed(self.make(), ear=self.ear))
        return self.observed[-1]

    @property
    def inner(self) -> Any:
        return self.observed[0].inner

    @property
    def played(self) -> Played:
        assert self.play is not None
        return self.play.played

    @property
    def asked(self) -> list[Asked]:
        return [each for observed in self.observed for each in observed.asked]

    def step(self) -> bool:
        assert self.play is not None
        try:
            with watchdog.watched([observed.inner for observed in self.observed]):
                return self.play.step()
        except (Exception, SystemExit) as error:
            self._explain(error)
            raise

    def finish(self) -> _Run:
        assert self.play is not None
        try:
            with watchdog.watched([observed.inner for observed in self.observed]):
                while self.play.step():
                    pass
                self.play.finish()
        except (Exception, SystemExit) as error:
            self._explain(error)
        return self

    def _explain(self, error: Exception | SystemExit) -> None:
        """Raise `ContractBroken` with what *error*, which ended the run, says of the policy."""
        if isinstance(error, ServeTwinError):
            told = str(error)
            if self.observed and not told.startswith("policy "):
                told = f"{named(self.inner)}: {told}"
        else:
            at = raised_at([observed.inner for observed in self.observed], error)
            if at is None:
                raise error
            _, file, line, function = at
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            told = f"{named(self.inner, (file, line))}: the policy failed in {function}: {text}"
        raise self.broken(told) from error

    def broken(self, told: str) -> ContractBroken:
        """That the contract is broken in this run."""
        drawing = self.play.played.drawn() if self.play is not None and self.play.played.bars else ""
        return ContractBroken(f"{told} [scenario: {self.scenario.name}]", drawing)


def _try(scenario: Scenario, make: Callable[[], Any], found: Kept, shared: Shared) -> None:
    with books():
        try:
            heard = _Run(scenario, make, ear=True).begin()
        except _Unfit as unfit:
            found.skipped.append((scenario.name, str(unfit)))
            return
        first = heard.finish()
        changed = shared.changed()
        if changed is not None:
            what = f"it changed {changed}"
            raise first.broken(f"{named(first.inner)}: {what} (right would be: state in self, made in __init__)")
        _gets_on(first)
        with scattered(1):
            _same(first, _Run(scenario, make).begin().finish(), "a new object does not decide the same")
        if scenario.crowded:
            with scattered(2):
                one, other = _Run(scenario, make).begin(), _Run(scenario, make).begin()
                while one.step() | other.step():
                    pass
                _same(first, one.finish(), "it decides otherwise when another object of its class is asked meanwhile")
                other.finish()
            _is_blind(first, make)
    asks = len(first.asked)
    found.promises += sum(observed.promised for observed in first.observed)
    found.scenarios.append((scenario.name, len(scenario.given), asks))


@contextmanager
def scattered(seed: int) -> Iterator[None]:
    """Within this, new tasks, and what is seen of workers, lie in memory in another order: who goes by ids or by the
    order of sets shows it."""
    dice = random.Random(seed)
    kept: list[Any] = [object.__new__(kind) for _ in range(400) for kind in (Task, Request, WorkerState)]
    holes: list[Any] = [object.__new__(kind) for _ in range(600) for kind in (Task, WorkerState)]
    dice.shuffle(holes)
    kept += holes[:400]
    del holes
    yield
    kept.clear()


def _same(one: _Run, other: _Run, what: str, until: float = inf) -> None:
    """Raise `ContractBroken` where the two say something else first, before *until*."""
    first, second = ([ask for ask in run.asked if ask[0] < until] for run in (one, other))
    for a, b in zip([*first, None], [*second, None], strict=False):
        if a == b:
            continue
        if a is None or b is None:
            if until < inf:
                return
            now = (a or b or (0.0,))[0]
            raise other.broken(f"{named(one.inner)}: {what}: at {now:g} s it is asked in one run only")
        if a[:3] != b[:3]:
            told = f"at {a[0]:g} s {_there(a)}, or at {b[0]:g} s {_there(b)}"
        else:
            told = f"at {a[0]:g} s it says {readable(a[3])}, or {readable(b[3])}"
        raise other.broken(f"{named(one.inner)}: {what}: {told}")


def _there(asked: Asked) -> str:
    return f"requests {[*asked[1]]} wait and {[*asked[2]]} run"


def _is_blind(first: _Run, make: Callable[[], Any]) -> None:
    """What is still to come must change nothing: the last requests are left out; outputs are made longer."""
    scenario = first.scenario
    given = sorted(scenario.given, key=lambda job: job.at)
    cut = 2 * len(given) // 3
    while cut < len(given) and given[cut].at <= given[cut - 1].at:
        cut += 1
    if cut < len(given):
        part = _Run(replace(scenario, given=given[:cut]), make).begin().finish()
        _same(first, part, "what it decides depends on requests that have not come yet", until=given[cut].at)
    if scenario.tokens:
        soonest = min((end.at for end in first.played.ends.values()), default=0.0)
        longer: list[Any] = [
            replace(prompt, limit=prompt.limit or prompt.output, output=(prompt.limit or prompt.output))
            for prompt in given
            if isinstance(prompt, Prompt)
        ]
        more = _Run(replace(scenario, given=longer), make).begin().finish()
        what = "what it decides depends on how many tokens will come out, which nobody tells"
        _same(first, more, what, until=soonest)


# -- getting on ---------------------------------------------------------------------------------------------------


def _gets_on(run: _Run) -> None:
    scenario, played = run.scenario, run.played
    policy = run.inner
    for observed in run.observed:
        for number, ran, deadline in observed.dropped:
            if ran and deadline == inf and not scenario.hurried:
                what = f"it gives up request {number}, which has begun and has no deadline"
                raise run.broken(f"{named(policy)}: {what}")
    if scenario.alone and played.met < len(scenario.given):
        ends = [f"{number} {end.outcome} at {end.at:g} s" for number, end in played.ends.items()]
        late = next(told for told, end in zip(ends, played.ends.values(), strict=True) if end.outcome != "met")
        what = f"a request that is alone, and has all the time that it could want, is not served in time: {late}"
        raise run.broken(f"{named(policy)}: {what}")
    if scenario.stream and not getattr(policy, "starves", False):
        starved = overtaken(played, scenario.patience)
        if starved is not None:
            number, count = starved
            what = f"it starves request {number}: {count} that came later were served while it got nowhere"
            right = "to serve it or give it up; or starves = True in the class, if that is meant"
            raise run.broken(f"{named(policy)}: {what} (right would be: {right})")


def overtaken(played: Played, patience: float = 0.0) -> tuple[int, int] | None:
    """(id, how many) of the request during whose longest standstill the most that came later were served, if these
    are more than `OVERTAKEN`; a request may be put off for *patience* seconds, and until its deadline."""
    worst: tuple[int, int] | None = None
    finished = sorted((end.at, end.arrival) for end in played.ends.values() if end.outcome in ("met", "late"))
    times = [at for at, _ in finished]
    for number, end in played.ends.items():
        steps = sorted({bar.start for bar in played.bars if number in bar.run})
        marks = [end.arrival, *steps, end.at]
        for since, until in pairwise(marks):
            since = max(since, end.arrival + patience, end.deadline if end.deadline < inf else since)
            between = finished[bisect_right(times, since) : bisect_right(times, until)]
            if len(between) <= OVERTAKEN:
                continue
            count = sum(arrival > end.arrival for _, arrival in between)
            if count > OVERTAKEN and (worst is None or count > worst[1]):
                worst = number, count
    return worst


__all__ = ["ContractBroken", "Kept", "assert_policy_contract", "check_contract", "digest", "hold"]
