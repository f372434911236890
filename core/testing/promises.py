"""Whether a policy keeps its word: what it said that it would decide again, and what it says of itself.

`Observed` stands between a worker and its policy. It lets each decision stand for itself alone, so that the policy is
asked at every step, and holds what it then says against what it had promised (`Repeat`, `Step.standing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from ..errors import PolicyFault
from ..isolation.answers import check_decision, fault
from ..isolation.code_inspection import named, watcher
from ..llm.policy import All, Fill, Step, TokenPolicy, TokenView
from ..policy import Batch, Decision, Repeat, WorkerView
from ..request import Task
from .conduct import Ear

#: What a policy was asked, and said: (time, waiting, running, answer).
Asked = tuple[float, tuple[int, ...], tuple[int, ...], tuple[Any, ...]]


def answer_of(decision: Decision) -> tuple[Any, ...]:
    """*decision* as something to compare: ids in order."""
    drop = tuple([task.id for task in decision.drop])
    if isinstance(decision, Step):
        decode = "all" if isinstance(decision.decode, All) else tuple([task.id for task in decision.decode])
        prefill = tuple([(task.id, count) for task, count in decision.prefill])
        preempt = tuple([task.id for task in decision.preempt])
        return prefill, decode, preempt, drop, decision.idle_until
    said = tuple([task.id for task in decision.run]), drop, bool(decision.whole), decision.idle_until
    if not decision.steps and not decision.reuse and not decision.devices:
        return said
    steps = tuple([(task.id, count) for task, count in (decision.steps or {}).items()])
    return (*said, steps, tuple([task.id for task in decision.reuse]), tuple(decision.devices))


@watcher
class Observed:
    """Passes everything on to *inner*, and keeps what it was *asked*. With *ear* it hears what its code calls."""

    def __init__(self, inner: Any, *, ear: bool = False) -> None:
        self.inner = inner
        self.ahead, self.pools = inner.ahead, inner.pools
        self.tokens_a_step = getattr(inner, "tokens_a_step", None)
        self.whole_prompts, self.chunks = getattr(inner, "whole_prompts", False), getattr(inner, "chunks", False)
        self.ear = Ear(inner) if ear else None
        self.asked: list[Asked] = []
        self.dropped: list[tuple[int, bool, float]] = []  # id, whether it ran, its deadline
        self.promised = 0
        self._word: _Word | None = None
        self._restless = False

    def _call(self, name: str, *given: Any) -> Any:
        method = getattr(self.inner, name)
        if self.ear is None:
            return method(*given)
        try:
            return self.ear.hear(method, *given)
        finally:
            if self.ear.found is not None:
                what, file, line = self.ear.found
                at = (file, line) if file else None
                raise PolicyFault(f"{named(self.inner, at, name)}: it {what} (right would be: {RULE})")

    def start(self, view: WorkerView) -> None:
        self._call("start", view)

    def admit(self, task: Task, view: WorkerView, now: float) -> Any:
        self._word = None
        return self._call("admit", task, view, now)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self._call("ended", batch, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self._word = None
        self._call("removed", task, view, now)

    def decide(self, view: Any, now: float) -> Decision:
        waiting, running = tuple(view.waiting), tuple(view.running)
        decision: Any = self._call("decide", view, now)
        check_decision(self.inner, decision, Step if isinstance(self.inner, TokenPolicy) else Decision)
        answer = answer_of(decision)
        self.asked.append((now, tuple([t.id for t in waiting]), tuple([t.id for t in running]), answer))
        here = set(running)
        self.dropped += [(task.id, task in here, task.deadline) for task in decision.drop]
        if isinstance(decision, Step):
            self._check_chunks(decision, view)
        if self._word is not None and not self._word.kept(self.inner, waiting, running, view, decision, now):
            self._word = None
        if decision.repeat is None:
            if self._word is not None and not self._word.stands:
                self._word = None
            return alone(decision)
        self.promised += 1
        if self._word is None and not getattr(decision, "reuse", ()):  # with reuse it is carried out once
            self._word = _Word(decision, answer, waiting, running, now)
        return alone(decision)

    def _check_chunks(self, step: Step, view: Any) -> None:
        """Raise `PolicyFault` if *step* is not what the policy says of itself."""
        short = next(((task, n) for task, n in step.prefill if n < task.pending), None)
        if short is not None and not self.inner.chunks:
            task, count = short
            what = (
                f"it prefills {count} of {task.pending} tokens of request {task.id}, and says that it cuts no prompts"
            )
            raise fault(self.inner, what, "chunks = True in its class")
        most = self.tokens_a_step
        if most is not None and step.prefill:
            decode = view.decoding if isinstance(step.decode, All) else len(step.decode)
            tokens = sum([count for _, count in step.prefill]) + decode
            if tokens > most:
                raise fault(self.inner, f"its step has {tokens} tokens, and it says that {most} are its budget")


#: What is told of what its code does.
RULE = "to decide by what it is shown alone: no clock, no randomness, no input or output"


def alone(decision: Any) -> Decision:
    """*decision* without its word to repeat it."""
    if decision.repeat is None:
        return decision  # type: ignore[no-any-return]
    if isinstance(decision, Step):
        more = {"preempt": decision.preempt, "drop": decision.drop, "idle_until": decision.idle_until}
        return Step(decision.prefill, decision.decode, **more)  # type: ignore[arg-type]
    acts: dict[str, Any] = {"steps": decision.steps, "reuse": decision.reuse, "devices": decision.devices}
    return Decision(decision.run, decision.drop, None, decision.whole, decision.idle_until, **acts)


class _Word:
    """A promise: *decision*, given *now* of those tasks, would be given again."""

    def __init__(
        self, decision: Any, answer: tuple[Any, ...], waiting: Sequence[Task], running: Sequence[Task], now: float
    ) -> None:
        self.answer, self.given = answer, now
        self.repeat: Repeat = decision.repeat
        self.stands: bool | Fill = getattr(decision, "standing", False)
        gone = set(decision.drop)
        self.here = {*waiting, *running} - gone
        self.run = set(running)
        self.times = 1  # how often it was carried out
        self.tokens = isinstance(decision, Step)

    def kept(
        self,
        policy: object,
        waiting: Sequence[Task],
        running: Sequence[Task],
        view: Any,
        decision: Any,
        now: float,
    ) -> bool:
        """Whether it still holds after *decision*. Raises `PolicyFault` if that is not what was promised."""
        if now <= self.given:
            return True  # nothing has run since
        if self.tokens and not self.run <= {*running}:
            ended = [task for task in self.run if task not in running and task in waiting]
            if ended or not self.stands:
                return False  # somebody was preempted, or is done
        if self.stands:
            return self._stands(policy, waiting, running, view, decision)
        if {*waiting, *running} != self.here or self.times >= self.repeat.times:
            return False
        if not now < self.repeat.limit + self.times * self.repeat.drift:
            return False
        if self.repeat.longest < inf and not (self.tokens and view.last_step <= self.repeat.longest):
            return False
        self.times += 1
        said = answer_of(decision)
        if said[:-1] == self._promised(said)[:-1]:
            return True
        word = f"Repeat({self.repeat.times}" + (f", limit={self.repeat.limit:g}" if self.repeat.limit < 1e300 else "")
        what = f"a Repeat of its is false: at {self.given:g} s it said {readable(self.answer)} with {word}), but at"
        raise fault(policy, f"{what} {now:g} s, with the same requests there, it says {readable(said)}")

    def _promised(self, said: tuple[Any, ...]) -> tuple[Any, ...]:
        """What was promised: the same, with nobody to drop any more, and nobody whose steps are to be settled."""
        if self.tokens:
            prefill, decode, preempt, _, idle = self.answer
            return prefill, decode, preempt, (), idle
        run, _, whole, idle = self.answer[:4]  # whose steps were settled has them
        return run, (), whole, idle

    def _stands(
        self, policy: object, waiting: Sequence[Task], running: Sequence[Task], view: Any, decision: Any
    ) -> bool:
        """Likewise, of a standing word: those that wait are prefilled first, whole, and else all decode; or a step in
        which all decode is filled up with prompts."""
        self.run = {*running}
        if isinstance(view, TokenView) and view.limits.enable_prefix_caching:
            return False  # what is pending then changes with those before it in the same step
        fill = self.stands if isinstance(self.stands, Fill) else None
        most = view.max_batched_tokens if fill is None else min(fill.tokens, view.max_batched_tokens)
        if any(task.preemptions for task in waiting):  # type: ignore[attr-defined]
            return False
        if (fill is None or not fill.cut) and any(task.pending > most for task in waiting):  # type: ignore[attr-defined]
            return False
        if fill is not None:
            fits = fill.chunks(view)
        else:
            fits = view.admissible([(task, task.pending) for task in waiting])  # type: ignore[attr-defined]
        decode = () if fits and fill is None else "all"
        wanted = (tuple([(task.id, count) for task, count in fits]), decode, (), ())
        said = answer_of(decision)
        taken = said[0][: len(fits)]
        if (taken, *said[1:4]) == wanted:
            return True
        told = f"prefill {[*map(list, wanted[0])]}" if fits else "let all decode"
        raise fault(policy, f"its standing word is false: it would {told} next, but it says {readable(said)}")


def readable(answer: tuple[Any, ...]) -> str:
    """*answer*, for people."""
    if len(answer) == 5:
        prefill, decode, preempt, drop, _ = answer
        parts = [f"prefill {[*map(list, prefill)]}"] * bool(prefill)
        parts += [f"decode {decode if isinstance(decode, str) else [*decode]}"]
        parts += [f"preempt {[*preempt]}"] * bool(preempt)
    else:
        run, drop, whole, _, *acts = answer
        parts = [f"run {[*run]}" + " whole" * whole]
        steps, reuse, devices = acts or ((), (), ())
        parts += [f"steps {dict(steps)}"] * bool(steps) + [f"reuse {[*reuse]}"] * bool(reuse)
        parts += [f"on devices {[*devices]}"] * bool(devices)
    return ", ".join([*parts, *[f"drop {[*drop]}"] * bool(drop)])


__all__ = ["Asked", "Observed", "answer_of", "readable"]
