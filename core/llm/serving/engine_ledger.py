"""The books of an LLM engine: what its tasks say and count, where no policy can look
(`servetwin.core.isolation.task_ledger`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ...errors import broken
from ...isolation.answers import check_decision, check_item, compared, fault, write_fault
from ...isolation.code_inspection import named
from ...pipeline import Stage
from ...serving.worker import Loop
from ..batch import Piece
from ..policy import Step, TokenView
from ..request import Ticks, TokenTask
from .host import LLMWorker

#: So many steps that preempted somebody, on end and without a token that came out, and an engine is taken to go round
#: in circles: what it computes it forgets again, and that would never end.
FRUITLESS = 1000

#: What a task says of itself, from when the policy is first shown it to the end of its visit.
SAID = (
    "id", "prompt", "limit", "budget", "predicted", "arrival", "deadline", "queued", "admitted", "request", "arrival",
    "deadline", "priority", "tenant", "weight", "class_name",
)  # fmt: skip


def says(task: TokenTask) -> tuple[object, ...]:
    """What *task* says now of `SAID`."""
    request, sent = task.request, (task.arrival, task.deadline, task.queued, task.admitted)
    asked = request.id, request.arrival, request.deadline
    terms = request.priority, request.tenant, request.weight, request.class_name
    return task.id, task.prompt, task.limit, task.budget, task.predicted, *sent, *asked, *terms


#: What a task counts, and how it says so.
Counts = tuple["Ticks | None", int, int, "float | None", "float | None", int]
COUNTED = ("ticks", "base_generated", "base_computed", "started", "first_token", "preemptions")
AS_IT_CAME: Counts = (None, 0, 0, None, None, 0)


class Guard:
    """Asks the policy of *engine*, and looks whether it has written what its view shares with the engine's."""

    def __init__(self, engine: TokenBooks) -> None:
        self.engine = engine
        self.shared = vars(engine.view)

    def decide(self, shown: Any, now: float) -> Any:
        before = self.shared.copy()
        step = self.engine.worker.policy.decide(shown, now)
        if self.shared != before:
            self.tell(before)
        return step

    def admit(self, task: TokenTask, shown: Any, now: float) -> bool:
        before = self.shared.copy()
        kept = self.engine.worker.policy.admit(task, shown, now)
        if self.shared != before:
            self.tell(before)
        return kept

    def tell(self, before: dict[str, Any]) -> NoReturn:
        now = dict(self.shared)
        self.shared.clear()
        self.shared.update(before)
        name = next(name for name in {**before, **now} if now.get(name) != before.get(name))
        raise write_fault(self.engine.policies(), f"{name} of its view", name)


class TokenBooks:
    """Those of the engine of *worker*. They are kept only if it is *booked*."""

    __slots__ = ("_books", "_said", "booked", "marks")

    # What an engine has besides.
    loop: Loop
    worker: LLMWorker
    stage: Stage
    view: TokenView
    tick: int
    ticks: Ticks
    bases: dict[TokenTask, int]

    def __init__(self) -> None:
        self.booked = False
        self._said: dict[TokenTask, tuple[object, ...]] = {}  # what each said when the policy was first shown it
        #: What each that decodes with the others says besides its count.
        self.marks: dict[TokenTask, tuple[float | None, float | None, int]] = {}
        #: What each other task counts that is not as it came, as the engine last wrote it.
        self._books: dict[TokenTask, Counts] = {}

    def policies(self) -> Sequence[object]:
        return self.loop.policies()

    def note(self, task: TokenTask) -> None:
        """Remember what *task*, which the policy is about to be shown, says."""
        self._said[task] = says(task)

    def check_out(self, task: TokenTask) -> None:
        """The visit of *task* is over. Raises `PolicyFault` if it does not say what it should."""
        self._books.pop(task, None)
        known = self._said.pop(task, None)
        if known is not None:
            now, request = says(task), task.request
            if now != known:
                raise compared(self.policies(), f"task {task.id}", SAID, now, known)
            if task.stage is not self.stage or task.worker is not self.worker.place or task not in request.tasks:
                raise write_fault(self.policies(), f"stage, worker or tasks of {task}", "stage", "worker", "tasks")

    def _check(self, task: TokenTask) -> None:
        """Raise `PolicyFault` if *task* does not count what the engine last wrote."""
        if not self.booked:
            return
        known = self._books.get(task, AS_IT_CAME)
        now = (task.ticks, task.base_generated, task.base_computed, task.started, task.first_token, task.preemptions)
        if now != known:
            names = ["ticks", "generated", "computed", *COUNTED[3:]]  # also by the names that a policy knows
            raise compared(self.policies(), f"task {task.id}", names, now, known)

    def _check_decoding(self, task: TokenTask, base: int) -> None:
        """Likewise, of one that decodes with the others."""
        known, now = self.marks.pop(task), (task.started, task.first_token, task.preemptions)
        if task.ticks is not self.ticks:
            raise write_fault(
                self.policies(), f"generated or computed of task {task.id}", "ticks", "generated", "computed"
            )
        if task.base_generated != base or now != known:
            names = ("generated", *COUNTED[3:])
            raise compared(self.policies(), f"task {task.id}", names, (task.base_generated, *now), (base, *known))

    def keep_books(self, task: TokenTask) -> None:
        """The engine has written what *task* counts."""
        if not self.booked:
            return
        self._books[task] = (
            task.ticks, task.base_generated, task.base_computed, task.started, task.first_token, task.preemptions
        )  # fmt: skip

    def _came_out(self, task: TokenTask, now: float) -> None:
        """The first token of *task* has come out."""
        if task in self.marks:
            self.marks[task] = self.marks[task][0], now, self.marks[task][2]
        elif task in self._books:
            self._books[task] = (*self._books[task][:4], now, self._books[task][5])

    def _wrong(self, step: object) -> None:
        """Raise `PolicyFault` unless *step* is one, and nobody has moved the clock that tokens are counted by."""
        check_decision(self.worker.policy, step, Step)
        if self.ticks.count != self.tick:
            raise write_fault(self.policies(), "count of the clock of those who decode", "count")

    def _no_chunk(self, task: object, count: object) -> NoReturn:
        check_item(self.worker.policy, "prefill", (task, count))
        right = "an int from 1 to what is pending"
        raise fault(self.worker.policy, f"it prefills {count} tokens of {task} at {self.view.name}", right)

    def _not_first(self, task: TokenTask, pieces: Sequence[Piece], admitted: int) -> None:
        """Raise `PolicyFault` if *task*, which runs, is prefilled after *pieces* which it is one of, or some of which
        were *admitted* from the queue."""
        if any(task is piece[0] for piece in pieces):
            raise fault(self.worker.policy, f"prefill of its decision holds {task!r} twice", "each task once")
        if admitted:
            what = f"it prefills {task}, which runs at {self.view.name}, after one that waits"
            raise fault(self.worker.policy, what)

    def _not_there(self, task: object) -> NoReturn:
        check_item(self.worker.policy, "prefill", (task, 1))
        raise fault(self.worker.policy, f"it prefills {task}, which is not at {self.view.name}", "a task of its view")

    def _tell_circle(self) -> None:
        view, policy = self.view, named(self.worker.policy)
        what = f"{FRUITLESS} steps on end preempted somebody, and not a token came out"
        where = f"at {self.loop.now():g} s, with {len(view.running)} running and {len(view.waiting)} waiting"
        raise broken(13, f"engine {view.name} goes round in circles under {policy}: {what} ({where})")
