"""Strategies for hypothesis: workloads, systems and policies to try a policy, or a tool that takes policies, with.

    from hypothesis import given
    from servetwin.core.testing import play, strategies

    @given(strategies.workloads(), strategies.workers())
    def test_nobody_is_lost(workload, worker):
        assert len(play(MyPolicy, workload, **worker).outcomes) == len(workload)

Needs ``pip install 'servetwin[test]'``; `servetwin.core.testing` imports this when it is asked for it, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

from ..llm.policy import ALL, Step, TokenPolicy, TokenView
from ..pipeline import Module, Pipeline
from ..policy import Decision, Policy, Repeat, WorkerView
from ..request import Task
from .jobs import Job, Prompt
from .timeline import System

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    from ..errors import BadInput

    raise BadInput("hypothesis is not installed", right="pip install 'servetwin[test]'") from error

#: Gaps between arrivals, in seconds: many come at one instant.
_GAPS = st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.1, 0.3, 1.0, 3.0])
#: Seconds of an iteration alone.
_SECONDS = st.sampled_from([0.01, 0.03, 0.1, 0.25, 1 / 3])


@st.composite
def workloads(
    draw: st.DrawFn, most: int = 20, iterations: int = 12, slo: st.SearchStrategy[float] | None = None
) -> list[Job]:
    """Up to *most* requests of up to so many *iterations*, in order of arrival; *slo* draws their SLOs (seconds), by
    default from hopeless to endless."""
    slos = slo if slo is not None else st.sampled_from([0.05, 0.3, 1.0, 3.0, 10.0, inf])
    at, found = 0.0, []
    for gap in draw(st.lists(_GAPS, min_size=1, max_size=most)):
        at += gap
        found.append(Job(draw(st.integers(1, iterations)), at=at, slo=draw(slos)))
    return found


@st.composite
def prompt_workloads(draw: st.DrawFn, most: int = 12, tokens: int = 300, output: int = 20) -> list[Prompt]:
    """Up to *most* requests to a language model: prompts of up to so many *tokens*, up to *output* tokens put out,
    limits and predictions that say more or less."""
    at, found = 0.0, []
    for gap in draw(st.lists(_GAPS, min_size=1, max_size=most)):
        at += gap
        out = draw(st.integers(1, output))
        limit = draw(st.sampled_from([out, out + 5, 2 * output]))
        predicted = draw(st.sampled_from([None, out, 2 * out, 1]))
        found.append(Prompt(draw(st.integers(1, tokens)), out, limit, at=at, predicted=predicted))
    return found


@st.composite
def workers(draw: st.DrawFn, most: int = 5) -> dict[str, Any]:
    """A worker, as arguments of `play` and `FakeWorker`: seconds by batch size, a limit of up to *most*, modules that
    follow."""
    first = draw(_SECONDS)
    steps = draw(st.lists(st.sampled_from([1.0, 1.05, 1.2, 1.5]), min_size=1, max_size=most))
    seconds = [first]
    for step in steps[1:]:
        seconds.append(seconds[-1] * step)
    then = draw(st.sampled_from([{}, {"decode": 0.02}, {"upscale": 0.1, "decode": 0.02}]))
    return {"seconds": seconds, "limit": len(steps), "then": then, "slo_factor": draw(st.sampled_from([1.5, 3.0]))}


@st.composite
def engines(draw: st.DrawFn, prompt: int = 300) -> dict[str, Any]:
    """An engine of a language model, as arguments of `play` and `FakeEngine`; it holds one *prompt* of so many tokens
    at least, and often not many more."""
    size = draw(st.sampled_from([1, 16]))
    least = -(-(prompt + 64) // size)
    step = draw(st.sampled_from([prompt + 64, 2 * prompt + 64]))
    return {
        "blocks": draw(st.sampled_from([least, least + 5, 2 * least, 10 * least])),
        "block_size": size,
        "max_batched_tokens": step,
        "max_sequences": draw(st.integers(1, 6)),
        "slo": draw(st.sampled_from([(1.5, 1.2), (6.0, 3.0), (1000.0, 1000.0)])),
        "headroom": draw(st.sampled_from([0, 1])),
    }


@st.composite
def pipelines(draw: st.DrawFn, most: int = 4) -> System:
    """A system of up to *most* modules in a chain, a fork, a join or a diamond, some of them loops, for `play`."""
    shapes: list[Callable[[list[str]], list[tuple[str, str]]]] = [_chain, _fork, _join, _diamond]
    count = draw(st.integers(1, most))
    names = ["model", "b", "c", "d", "e", "f"][:count]
    edges = draw(st.sampled_from(shapes[: 1 if count < 3 else 3 if count < 4 else 4]))(names)
    modules = [Module(name, loop=name == "model" or draw(st.booleans())) for name in names]
    seconds = {name: draw(_SECONDS) for name in names}
    limits = {name: draw(st.integers(1, 4)) for name in names}
    return System(Pipeline(modules, edges), seconds, limits, slo_factor=3.0)


def _chain(names: list[str]) -> list[tuple[str, str]]:
    return list(pairwise(names))


def _fork(names: list[str]) -> list[tuple[str, str]]:
    return [(names[0], name) for name in names[1:]]


def _join(names: list[str]) -> list[tuple[str, str]]:
    return [(name, names[-1]) for name in names[:-1]]


def _diamond(names: list[str]) -> list[tuple[str, str]]:
    first, *middle, last = names
    return [edge for name in middle for edge in ((first, name), (name, last))]


#: Orders in which the policies below serve.
ORDERS: dict[str, Callable[[Task], Any]] = {
    "arrival": lambda task: (task.arrival, task.id),
    "deadline": lambda task: (task.deadline, task.id),
    "work": lambda task: (task.left, task.id),
    "newest": lambda task: (-task.arrival, -task.id),
}


@dataclass(eq=False)
class AnyOrder(Policy):
    """A policy that keeps the contract: in the *order* of that name, in batches of *most* (None: the limit).

    *whole* runs requests to their end, *sticky* leaves who runs in front, *drops* gives up who is late, *promises*
    says where it would repeat itself (not in the order of work, which changes).
    """

    order: str = "arrival"
    most: int | None = None
    whole: bool = False
    sticky: bool = False
    drops: bool = False
    promises: bool = False
    starves = True

    def decide(self, view: WorkerView, now: float) -> Decision:
        key = ORDERS[self.order]
        tasks = [*view.running, *view.waiting]
        late = [task for task in tasks if self.drops and now > task.deadline]
        running = sorted([task for task in view.running if task not in late], key=key)
        waiting = sorted([task for task in view.waiting if task not in late], key=key)
        both = [*running, *waiting] if self.sticky else sorted([*running, *waiting], key=key)
        run = both[: min(self.most or view.limit, view.limit)]
        word = None
        if self.promises and run and not self.whole and self.order != "work":
            begun = not self.sticky or all(task in view.running for task in run)
            late_at = min(task.deadline for task in both) if self.drops else inf
            word = Repeat(min(task.left for task in run), late_at) if begun else None
        return Decision(run, late, word, self.whole)


@dataclass(eq=False)
class AnySteps(TokenPolicy):
    """A policy for engines that keeps the contract: prompts in the *order* of that name (arrival, prompt or newest),
    *most* at a time (None: what fits), before tokens, or beside them (*mixed*)."""

    order: str = "arrival"
    most: int | None = None
    mixed: bool = False
    starves = True

    def decide(self, view: TokenView, now: float) -> Step:
        keys: dict[str, Callable[[Any], Any]] = {
            "arrival": lambda task: (-task.preemptions, task.arrival, task.id),
            "prompt": lambda task: (-task.preemptions, task.prompt, task.id),
            "newest": lambda task: (-task.preemptions, -task.arrival, -task.id),
        }
        waiting = sorted(view.waiting, key=keys[self.order])[: self.most]
        beside = view.decoding if self.mixed else 0
        prefill = view.admissible([(task, task.pending) for task in waiting], decode=beside)
        return Step(prefill, ALL) if self.mixed or not prefill else Step(prefill)


def policies() -> st.SearchStrategy[AnyOrder]:
    """Policies for workers that keep the contract, from first come first served to newest first."""
    return st.builds(
        AnyOrder,
        order=st.sampled_from(sorted(ORDERS)),
        most=st.none() | st.integers(1, 4),
        whole=st.booleans(),
        sticky=st.booleans(),
        drops=st.booleans(),
        promises=st.booleans(),
    )


def token_policies() -> st.SearchStrategy[AnySteps]:
    """Likewise for engines of language models."""
    orders = st.sampled_from(["arrival", "prompt", "newest"])
    return st.builds(AnySteps, order=orders, most=st.none() | st.integers(1, 3), mixed=st.booleans())


__all__ = [
    "AnyOrder",
    "AnySteps",
    "engines",
    "pipelines",
    "policies",
    "prompt_workloads",
    "token_policies",
    "workers",
    "workloads",
]
