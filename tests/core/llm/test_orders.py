"""Orders that are kept between decisions: as if each were made anew."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import Module, Pipeline
from servetwin.core.llm import EarliestDue, Ticks, TokenRequest, TokenTask, WaitingOrder, queue_order

(STAGE,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])
SMALL = st.integers(0, 8)


class Queue:
    """The queue of an engine; *waiting* and *running* as in `TokenView`."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[TokenTask, None] = OrderedDict()
        self.running: dict[TokenTask, None] = {}
        self.ticks, self.ids = Ticks(), count()

    def comes(self, prompt: int) -> None:
        self.waiting[TokenTask(TokenRequest(next(self.ids), 0.0, {"llm": (1, 9)}), STAGE, 0.0, None, prompt, 99)] = (
            None
        )

    def begins(self, task: TokenTask, together: bool = True) -> None:
        del self.waiting[task]
        self.running[task] = None
        if together:
            task.base_generated -= self.ticks.count
            task.ticks = self.ticks

    def preempted(self, task: TokenTask) -> None:
        generated = task.generated
        task.ticks, task.base_generated = None, generated
        task.preemptions += 1
        del self.running[task]
        self.waiting[task] = None
        self.waiting.move_to_end(task, last=False)


@given(st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=40), st.booleans())
def test_those_who_wait_are_ranked_as_if_all_were_sorted_anew(moves: list[tuple[int, int, int]], fixed: bool) -> None:
    queue, kept = Queue(), []
    order = WaitingOrder(lambda task: task.prompt + task.generated, fixed=fixed)
    for move, which, prompt in moves:
        waiting, running = [*queue.waiting], [*queue.running]
        if move < 3:
            queue.comes(prompt)
        elif move < 5 and waiting:
            for _, _, task in [e for e in order.entries if e[2] in queue.waiting][: 1 + which]:
                queue.begins(task)
                kept.remove(task)
        elif move == 5 and running:
            queue.preempted(running[which % len(running)])
        elif move == 6 and waiting:
            task = waiting[which % len(waiting)]
            del queue.waiting[task]
            kept = [t for t in kept if t is not task]
        elif move == 7:
            queue.ticks.count += which
        else:
            order.follow(queue.waiting)
            kept = queue_order(queue, kept)  # type: ignore[arg-type]
            assert order.queue() == kept
            ranked = sorted(kept, key=lambda task: task.prompt + task.generated)
            assert [task for _, _, task in order.entries] == ranked
            if which % 2:
                order.settle()
                kept = ranked


def test_a_queue_that_changes_in_the_middle_is_ranked_anew() -> None:
    queue, order = Queue(), WaitingOrder(lambda task: task.prompt)
    for prompt in (3, 1, 2):
        queue.comes(prompt)
    assert order.follow(queue.waiting)
    first, middle, last = queue.waiting
    queue.comes(7)
    new = next(reversed(queue.waiting))
    queue.waiting.move_to_end(last)  # in no engine: the new one stands before one that was there
    assert order.follow(queue.waiting)
    assert [task for _, _, task in order.entries] == [middle, last, first, new]


def test_one_that_is_preempted_again_may_stand_behind_others() -> None:
    """Where an engine passes some over: as many are there as before, and one of them is new."""
    queue, order = Queue(), WaitingOrder(lambda task: task.prompt + task.generated, anywhere=True)
    for prompt in (3, 1, 2, 7):
        queue.comes(prompt)
    passed, again, leaves, last = queue.waiting
    for _ in range(2):
        queue.begins(again, together=False)
        again.base_generated += 4
        queue.preempted(again)
        queue.waiting.move_to_end(passed, last=False)
        if leaves in queue.waiting and again.preemptions == 1:
            assert order.follow(queue.waiting)
            assert order.queue() == [again, passed, leaves, last]
            del queue.waiting[leaves]
            queue.comes(9)
    new = next(reversed(queue.waiting))
    assert order.follow(queue.waiting)
    assert [task for _, _, task in order.entries] == [passed, last, again, new]
    assert not order.follow(queue.waiting)
    del queue.waiting[last]
    assert order.follow(queue.waiting)


def test_a_key_that_has_changed_is_ranked_again() -> None:
    queue, keys = Queue(), {0: 5, 1: 1, 2: 5}
    order = WaitingOrder(lambda task: keys[task.id])
    for _ in keys:
        queue.comes(1)
    order.follow(queue.waiting)
    first, second, third = queue.waiting
    keys[1] = 5
    order.rank_again(second)
    assert [task for _, _, task in order.entries] == [first, second, third]  # with equal keys as in the queue
    assert not order.follow(queue.waiting)


@given(st.lists(st.tuples(SMALL, SMALL, st.floats(0, 100)), max_size=60), st.booleans())
def test_who_is_due_first_is_found_without_a_look_at_all(moves: list[tuple[int, int, float]], bounded: bool) -> None:
    queue, slopes = Queue(), {}

    def due(task: TokenTask) -> tuple[float, float]:
        first, slope = slopes[task.id]
        time = first + slope * task.generated
        return time, time

    most = (lambda task: slopes[task.id][1] + 0.25) if bounded else None
    first = EarliestDue(due, lambda task: slopes[task.id][1], most)
    for move, which, at in moves:
        running = [*queue.running]
        if move < 2 or (move == 2 and not queue.waiting):
            queue.comes(1)
            slopes[next(reversed(queue.waiting)).id] = at, 0.5 + which / 4
        elif move == 2:
            queue.begins(next(iter(queue.waiting)), together=which > 0)
        elif move == 3:
            queue.ticks.count += which
        elif move == 4 and running:
            queue.preempted(running[which % len(running)])
        elif move == 5 and running and not bounded:  # (else all decode together)
            running[which % len(running)].base_generated += 1
        elif move == 6 and running:
            del queue.running[running[which % len(running)]]
        else:
            dues = [due(task)[0] for task in running]
            assert first.earliest(queue.running) == min(dues, default=float("inf"))
            found = first.earliest(queue.running, enough=at)
            assert found in dues if min(dues, default=at) < at else found == min(dues, default=float("inf"))
            later = [time for time in dues if time >= at]
            assert first.earliest(queue.running, since=at) == min(later, default=float("inf"))
