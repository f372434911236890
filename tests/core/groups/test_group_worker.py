"""Groups of devices: what a policy may say of them, what it may not, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core import Decision, InvariantBroken, Policy, WorkerView
from servetwin.core.errors import PolicyFault
from servetwin.core.testing import Job, Played, play
from servetwin.core.testing.timeline import on_degree

Answer = Callable[[WorkerView], dict[str, Any]]


class Says(Policy):
    """Runs the oldest request that is in no batch, and lets *of* say more."""

    names_devices = True

    def __init__(self, of: Answer) -> None:
        self.of = of

    def decide(self, view: WorkerView, now: float) -> Decision:
        free = [task for task in (*view.running, *view.waiting) if not view.group.busy(task)]
        return Decision(**({"run": free[:1]} | self.of(view))) if free else Decision()


def served(of: Answer, jobs: list[Job] | None = None, change: float | None = 0.5) -> Played:
    """Two requests of three steps, a second each on one of four devices."""
    return play(lambda: Says(of), jobs or [Job(3), Job(3)], seconds=1.0, gpus=4, change=change)


def test_two_batches_run_at_once_on_devices_of_their_own() -> None:
    run = served(lambda view: {"devices": view.group.free[:2], "whole": True})
    lasts = 3 * on_degree(1.0, 2)
    assert [(bar.run, bar.devices, bar.start, bar.end) for bar in run.bars] == [
        ((0,), (0, 1), 0.0, lasts),
        ((1,), (2, 3), 0.0, lasts),
    ]


def test_a_change_of_devices_takes_what_it_takes() -> None:
    def later_on_more(view: WorkerView) -> dict[str, Any]:
        (task,) = [*view.running, *view.waiting]
        return {"devices": (0, 1, 2, 3) if task.left == 1 else (0, 1)}

    ends = [bar.end for bar in served(later_on_more, [Job(3)]).bars]
    step = on_degree(1.0, 2)
    assert ends == pytest.approx([step, 2 * step, 2 * step + on_degree(1.0, 4) + 0.5])


def test_the_view_tells_of_devices_and_times() -> None:
    seen: list[Any] = []

    def look(view: WorkerView) -> dict[str, Any]:
        group = view.group
        tasks = [*view.running, *view.waiting]
        seen.append((group.free, [group.devices_of(task) for task in tasks], [group.busy(task) for task in tasks]))
        assert (group.size, group.degrees, group.change) == (4, (1, 2, 4), 0.5)
        assert group.estimate("model", 1, 4) == on_degree(1.0, 4)
        with pytest.raises(AttributeError, match="not the policy's to set"):
            group.size = 8
        return {"devices": group.free[:1]}

    served(look)
    assert seen[:3] == [
        ((0, 1, 2, 3), [(), ()], [False, False]),
        ((1, 2, 3), [(0,), ()], [True, False]),
        ((0, 1, 2, 3), [(0,), (1,)], [False, False]),
    ]


def test_a_worker_with_one_device_is_a_group_of_one() -> None:
    def look(view: WorkerView) -> dict[str, Any]:
        assert (view.group.size, view.group.degrees, view.group.free) == (1, (1,), (0,))
        assert view.group.estimate("model", 1, 1) == 1.0
        return {"devices": (0,)}

    assert play(lambda: Says(look), [Job(2)], seconds=1.0).outcomes == ["met"]
    with pytest.raises(PolicyFault, match=r"on devices \[0, 1\] of model, which has one"):
        play(lambda: Says(lambda view: {"devices": (0, 1)}), [Job(2)], seconds=1.0)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda view: {}, "on 0 devices of model .right would be: so many as view.group.degrees says: 1, 2, 4"),
        (lambda view: {"devices": (0, 1, 2)}, "on 3 devices"),
        (lambda view: {"devices": (0, 0)}, r"on devices \[0, 0\] .* of which \[0, 1, 2, 3\] are free"),
        (lambda view: {"devices": (4,)}, r"on devices \[4\]"),
        (lambda view: {"devices": (0,)}, r"on devices \[0\] of model, of which \[1, 2, 3\] are free"),
        (lambda view: {"devices": 0}, "devices of its decision is 0"),
        (lambda view: {"devices": (0.0,)}, "devices of its decision is .0.0,"),
        (lambda view: {"devices": view.group.free[:1], "run": [*view.waiting][:1] * 2}, "runs .* twice"),
        (lambda view: {"devices": view.group.free[:1], "run": [*view.running, *view.waiting][:1]}, "in a batch"),
        (lambda view: {"devices": view.group.free[:1], "drop": [*view.running]}, "drops .* in a batch"),
        (lambda view: {"devices": view.group.free[:1], "reuse": [*view.waiting]}, "where neither may be"),
    ],
    ids=["none", "three", "twice", "none such", "busy", "number", "float", "task twice", "flying", "drop", "reuse"],
)
def test_what_a_policy_may_not_say(of: Answer, said: str) -> None:
    with pytest.raises((PolicyFault, InvariantBroken), match=said):  # whichever looks first
        served(of, [Job(3), Job(3)])


def test_nobody_changes_devices_where_nobody_knows_what_that_takes() -> None:
    def other(view: WorkerView) -> dict[str, Any]:
        return {"devices": (0,) if view.waiting else (1,)}

    assert len(served(other, [Job(3)], change=0.0).bars) == 3
    with pytest.raises(PolicyFault, match=r"ran on devices \[0\] of model, and now on \[1\] .*regroup"):
        served(other, [Job(3)], change=None)


class AtRandom(Policy):
    """Runs anybody anywhere, by the numbers that it was given; drops some of those that are free."""

    names_devices = True

    def __init__(self, numbers: list[int]) -> None:
        self.numbers, self.asked = numbers, 0

    def _next(self, most: int) -> int:
        self.asked += 1
        return self.numbers[self.asked % len(self.numbers)] % most

    def decide(self, view: WorkerView, now: float) -> Decision:
        group, here = view.group, [task for task in (*view.running, *view.waiting) if not view.group.busy(task)]
        if not here:
            return Decision()
        if self._next(13) == 0:
            return Decision(drop=[here[self._next(len(here))]], idle_until=now + 0.01)
        degrees = [degree for degree in group.degrees if degree <= len(group.free)]
        first = self._next(len(here))
        tasks = here[first : first + 1 + self._next(view.limit)]
        devices = sorted(group.free, key=lambda device: (device * 7 + self._next(5)) % 8)[
            : degrees[self._next(len(degrees))]
        ]
        return Decision(tasks, devices=devices, whole=self._next(4) == 0)


@settings(max_examples=25, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 1000), min_size=5, max_size=40),
    steps=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    size=st.sampled_from([2, 3, 4, 8]),
)
def test_whatever_is_decided_no_device_and_no_request_is_in_two_batches(
    numbers: list[int], steps: list[int], size: int
) -> None:
    jobs = [Job(n, at=0.3 * i, slo=20.0) for i, n in enumerate(steps)]
    run = play(
        lambda: AtRandom(numbers), jobs, seconds=[0.1, 0.15], limit=2, gpus=size, change=0.01
    )  # all invariants
    assert len(run.ends) == len(jobs)
    for i, bar in enumerate(run.bars):
        for other in run.bars[:i]:
            if other.end > bar.start:
                assert not set(other.devices) & set(bar.devices)
                assert not set(other.run) & set(bar.run)
