"""Who goes on from the light model to the heavy one, and who does not: by numbers worked out by hand."""

from __future__ import annotations

import pytest
from servetwin.core import Module, Pipeline, Policy, Request
from servetwin.core.pipeline import Edge, StepActions
from servetwin.core.request import ActingTask, Task
from servetwin.core.serving.dispatch import state_of
from servetwin.core.testing.timeline import System
from servetwin.policies.diffusion.cascade import Cascade

CONFIDENT = StepActions(quality=((1.0, 1.0),), confidence=((0.0, 0.4), (1.0, 1.0)))
MODULES = (Module("light", loop=True, actions=CONFIDENT), Module("heavy", loop=True), Module("vae", join="any"))
EDGES = (("light", "vae"), ("heavy", "vae"), Edge("light", "heavy", 0.25))


class Cascaded:
    """A light worker under `Cascade`, and a heavy one on which four run at once: a step there takes a second, ten
    of them are asked for, and decoding half a second more."""

    def __init__(self, *, alone: bool = False, threshold: float = 0.6, full: float = 2.0) -> None:
        seconds = {"light": 0.1, "heavy": 1.0, "vae": 0.5}
        self.policy = Cascade(threshold=threshold, full=full)
        system = System(Pipeline(MODULES, EDGES), seconds, {"light": 8, "heavy": 4, "vae": 4})
        self.light, self.heavy, _ = system.workers(lambda stage: self.policy if stage.name == "light" else Policy())
        # Its own state, which is no second model's, is always among them.
        peers = [self.light] if alone else [self.light, self.heavy]
        self.light.view.peers = tuple(state_of(worker) for worker in peers)

    def goes_on(self, confidence: float, *, waiting: int = 0, running: int = 0, slo: float = 1e9) -> bool:
        """Whether one of that *confidence* goes on at 1 s, with so many at the second model."""
        sent = [Request(1 + n, 0.0, 1e9, {"heavy": 10}) for n in range(waiting + running)]
        there = [Task(request, self.heavy.stage, 0.0) for request in sent]
        self.heavy.view.waiting.update(dict.fromkeys(there[:waiting]))
        self.heavy.view.running.update(dict.fromkeys(there[waiting:]))
        task = ActingTask(Request(0, 0.0, slo, {"light": 8, "heavy": 10}), self.light.stage, 0.0)
        task.confidence = confidence
        return self.policy.onward(task, self.light.view, 1.0)


@pytest.mark.parametrize(
    ("waiting", "running", "threshold"),
    [(0, 0, 0.6), (0, 2, 0.45), (2, 2, 0.3), (4, 3, 0.075)],
    ids=["nobody", "half a batch", "a batch", "nearly two"],
)
def test_the_threshold_falls_with_those_that_are_at_the_second_model(
    waiting: int, running: int, threshold: float
) -> None:
    assert Cascaded().goes_on(threshold - 0.001, waiting=waiting, running=running)
    assert not Cascaded().goes_on(threshold, waiting=waiting, running=running)


@pytest.mark.parametrize("there", [8, 12])
def test_nobody_goes_on_where_full_batches_are_there(there: int) -> None:
    assert not Cascaded().goes_on(0.0, waiting=there)


def test_full_says_how_many_batches_that_are() -> None:
    assert Cascaded(full=4.0).goes_on(0.29, waiting=8)
    assert not Cascaded(full=4.0).goes_on(0.30, waiting=8)


def test_nobody_goes_on_who_would_be_late_by_it() -> None:
    """Ten and a half seconds alone, and half of that more after half a batch."""
    assert Cascaded().goes_on(0.1, slo=1.0 + 10.5)
    assert not Cascaded().goes_on(0.1, slo=1.0 + 10.4)
    assert Cascaded().goes_on(0.1, running=2, slo=1.0 + 15.75)
    assert not Cascaded().goes_on(0.1, running=2, slo=1.0 + 15.7)


def test_the_least_loaded_of_several_second_models_counts() -> None:
    """One of them is full; before the other is, nobody is late."""
    one, other = Cascaded(), Cascaded()
    one.light.view.peers = (*one.light.view.peers, *other.light.view.peers)
    assert one.goes_on(0.5, waiting=8)
    other.goes_on(0.5, waiting=4)
    assert not one.goes_on(0.5)


def test_without_a_second_model_the_usual_choice_is_made() -> None:
    """Which is the branch's own share: a quarter."""
    assert not Cascaded(alone=True).goes_on(0.5)
    assert Cascaded(alone=True).goes_on(0.2)
