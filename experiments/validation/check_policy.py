"""``servetwin check``: a policy held to its contract, as `assert_policy_contract` has it in a test, and more.

It must decide the same in another process, where texts have other hashes; and it is run on short experiments, or on
one of the user's, under all invariants and books, with each `Repeat` and without, twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from servetwin.core import BadInput, Batch, Decision, InvariantBroken, Recorder, Request, Summary
from servetwin.core.errors import PolicyFault
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.isolation import task_ledger as books_of
from servetwin.core.isolation.code_inspection import named, own, watcher
from servetwin.core.llm import Step, TokenPolicy
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.policy import PolicyBase
from servetwin.core.testing.contract import Kept, digest, hold

from ..assembly import build
from ..registry import policy_registry
from ..registry.policy_errors import policies_answer
from ..spec.experiment import Experiment
from ..spec.loading import load
from ..sweeps.point import settings_of

#: What a policy is checked on if nothing is said: an experiment, its rates (requests/s) and requests.
STEPS = ("dit-s2-256-rtx4090", (2.0, 8.0), 60)
TOKENS = ("opt-13b-a6000", (0.5, 3.0), 80)
#: What policies are told there of outputs to come: some go by it, others do not look.
PREDICTED = {"model": "noisy", "sigma": 0.5}


@dataclass
class Log(Recorder):
    """What ran when, iteration by iteration, and how requests ended."""

    ran: list[tuple[Any, ...]] = field(default_factory=list)
    ends: list[tuple[Any, ...]] = field(default_factory=list)
    wants_batches = True

    def __post_init__(self) -> None:
        super().__init__()

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        who: tuple[Any, ...] = tuple([task.id for task in batch.tasks])
        if isinstance(batch, TokenBatch):
            who = (who, batch.decode, tuple([n for _, n, _ in batch.prefill]))
        ends = batch.ends if batch.count > 1 and batch.ends is not None else [batch.end]
        self.ran += [(batch.worker.name, end, who) for end in ends]

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.ends.append((request.id, request.outcome, now))


@watcher
class Asked:
    """Passes everything on to *inner* and counts; with *alone* each decision stands for itself alone."""

    def __init__(self, inner: Any, alone: bool) -> None:
        self.inner, self.alone = inner, alone
        self.ahead, self.pools = inner.ahead, inner.pools
        self.start, self.admit, self.removed = inner.start, inner.admit, inner.removed
        self.ended, self.onward = getattr(inner, "ended", None), getattr(inner, "onward", None)
        self.decisions = self.repeated = 0

    def decide(self, view: Any, now: float) -> Decision:
        decision: Any = self.inner.decide(view, now)
        self.decisions += 1
        if getattr(decision, "repeat", None) is None:
            return decision
        self.repeated += 1
        if not self.alone:
            return decision
        if isinstance(decision, Step):
            more = {"preempt": decision.preempt, "drop": decision.drop, "idle_until": decision.idle_until}
            return Step(decision.prefill, decision.decode, **more)  # type: ignore[arg-type]
        acts: dict[str, Any] = {"steps": decision.steps, "reuse": decision.reuse, "devices": decision.devices}
        return Decision(decision.run, decision.drop, None, decision.whole, decision.idle_until, **acts)


@dataclass
class Checked:
    """What a check found: of each run its experiment, rate, requests, decisions, and those with a `Repeat`."""

    policy: str
    kept: Kept
    runs: list[tuple[str, float | None, int, int, int]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        told = [f"{self.policy}: no fault found"]
        kept = self.kept
        word = f"; {kept.promises} with a word to repeat them, which it kept" if kept.promises else ""
        told.append(
            f"  {len(kept.scenarios)} scenarios: {kept.decisions} decisions, the same by another object and in"
            f" another process{word}"
        )
        told += [f"  not tried: {name}, as it says: {why}" for name, why in kept.skipped]
        for name, rate, requests, decisions, repeated in self.runs:
            at = f" at {rate:g} requests/s" if rate is not None else ""
            told.append(
                f"  {name}{at}: {requests} requests, {decisions} decisions under all invariants; the same when"
                f" asked again; {repeated} with a Repeat, the same step by step"
            )
        return told


def check(name: str, experiment: str | None = None, settings: Sequence[tuple[str, Any]] = ()) -> Checked:
    """Hold the policy that *name* means to its contract, then run it on *experiment*, or on short ones of its kind;
    *settings* are of these, as ("policy.params.max_batch", 8). Raises `PolicyFault` if it does what it may not, which
    is a `servetwin.core.testing.contract.ContractBroken` with a drawing where a scenario shows it, and `BadInput` if
    there is no such policy or experiment."""
    kind: type = policy_registry.find_policy(name)
    default, rates, requests = TOKENS if issubclass(kind, TokenPolicy) else STEPS
    points = []
    for rate in rates if experiment is None else (None,):
        asked: list[tuple[str, Any]] = [("policy", name)]
        asked += [("rate", rate), ("requests", requests)] if rate is not None else []
        if experiment is None and default == TOKENS[0]:
            asked.append(("workload.lengths.llm.predict", PREDICTED))
        points.append(load(experiment or default, [*asked, *settings]))
    params = points[0].policy.params if points[0].policy is not None else {}
    make = partial(policy_registry.make, name, params)
    found = Checked(named(object.__new__(kind)), hold(make, kind, name))
    _elsewhere(name, params, digest(make), kind)
    for point in points:
        found.runs.append(_try(point))
    return found


def _elsewhere(name: str, params: Mapping[str, Any], here: str, kind: type) -> None:
    """Raise `PolicyFault` if the policy decides otherwise in another process, where texts have other hashes."""
    code = "from servetwin.experiments.validation import check_policy; check_policy.tell_digest()"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([name, dict(params)]),
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise PolicyFault(f"{named(object.__new__(kind))}: in another process it fails: {last}")
    if done.stdout.split()[-1:] != [here]:
        what = "in another process it does not decide the same (hashes of texts, or a file that has changed)"
        raise PolicyFault(f"{named(object.__new__(kind))}: {what}")


def tell_digest() -> None:
    """Read a policy's name and parameters as JSON, and write what `digest` gives."""
    name, params = json.load(sys.stdin)
    try:
        found = digest(partial(policy_registry.make, name, params))
    except (BadInput, InvariantBroken) as error:
        sys.exit(str(error))
    sys.stdout.write(found + "\n")


def _try(point: Experiment) -> tuple[str, float | None, int, int, int]:
    """What `Checked.runs` has of *point*."""
    plain, asks = _run(point, alone=False)
    again, _ = _run(point, alone=False)
    alone, _ = _run(point, alone=True)
    policy = asks[0].inner
    _same(policy, plain, again, "it does not decide the same when it is asked again")
    what = "a Repeat of its is false: it does not decide the same when it is asked at every step"
    _same(policy, plain, alone, what)
    decisions, repeated = sum(a.decisions for a in asks), sum(a.repeated for a in asks)
    return point.name, settings_of(point)["rate"], plain.summary.requests, decisions, repeated


def run_under_invariants(point: Experiment) -> Summary:
    """Simulate *point* under all invariants; gives its summary. Raises `PolicyFault` or `InvariantBroken`."""
    log, _ = _run(point, alone=False)
    return log.summary


def _run(point: Experiment, *, alone: bool) -> tuple[Log, list[Asked]]:
    log = Log()
    checker = InvariantChecker(log)
    before, books_of.BOOKED = books_of.BOOKED, True
    try:
        run = build.build(point, checker)
        policies: Sequence[PolicyBase] = [worker.policy for worker in run.loop.workers]
        asks = [Asked(policy, alone) for policy in policies]
        for worker, ask in zip(run.loop.workers, asks, strict=True):
            worker.policy = ask  # type: ignore[assignment]
        checker.watch(run.loop)
        with policies_answer(policies):
            run.play(columns=False)
            checker.finish()
    except PolicyFault:
        raise
    except InvariantBroken as broken:
        raise PolicyFault(f"{named(policies[0])}: {broken}") from broken
    finally:
        books_of.BOOKED = before
    return log, asks


def _same(policy: object, one: Log, other: Log, what: str) -> None:
    """Raise `PolicyFault` where the two differ first, by time: what runs many iterations as one event is told of
    when the last of them ends."""
    first, second = (sorted(log.ran, key=lambda ran: (ran[1], ran[0])) for log in (one, other))
    for a, b in zip([*first, None], [*second, None], strict=False):
        if a != b:
            told = "; ".join(f"{x[0]} runs {x[2]} until {x[1]:.9g} s" if x is not None else "nothing" for x in (a, b))
            raise PolicyFault(f"{named(own(policy))}: {what}: {told}")
    ends = [sorted(log.ends, key=lambda end: (end[2], end[0])) for log in (one, other)]
    if ends[0] != ends[1]:
        a, b = next(pair for pair in zip(*ends, strict=False) if pair[0] != pair[1])
        raise PolicyFault(f"{named(own(policy))}: {what}: request {a[0]} ends as {a[1]}, or request {b[0]} as {b[1]}")
