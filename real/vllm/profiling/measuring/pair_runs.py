"""Loads of one kind on an engine, for a while: what two engines on one device cost each other, and what it costs to
alternate between prefill and decode.

These functions run in the engine's process (`engine_process.EngineProcess.ask` with "call").
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from servetwin.core.llm import ALL, Step, TokenPolicy, TokenView

from ...engine import VllmEngine
from ...scheduler import StepLog
from .step_grid import Together, _Bench


def spell(
    engine: VllmEngine, kind: Literal["prefill", "decode"], size: int, context: int, begin: float, until: float
) -> list[StepLog]:
    """The steps of *kind* that *engine* makes between *begin* and *until* (monotonic clock, as the steps' times).

    "decode": *size* sequences that begin with *context* tokens; "prefill": prompts of *size* tokens, one at a time.
    """
    bench = _Bench(engine, lambda _: None)
    bench.install(Together())
    scheduler = engine.scheduler
    scheduler.zero = 0.0
    with engine.undisturbed():
        if kind == "decode":
            longest = engine.options.max_model_len - context - 1
            for _ in range(size):
                bench.add(context, longest)
            while scheduler.view.decoding < size:
                engine.step()
        time.sleep(max(0.0, begin - time.monotonic()))
        while time.monotonic() < until:
            if not engine.engine.has_unfinished_requests():
                if kind == "decode":
                    break
                bench.add(size, 1)
            engine.step()
    steps = [step for step in scheduler.log if step.start >= begin]
    engine.empty()
    return [step for step in steps if bool(step.prefill) == (kind == "prefill")]


class _Turns(TokenPolicy):
    """One request at a time in each step: a prompt and its decode step in turns, or (*grouped*) first all prompts."""

    def __init__(self, grouped: bool) -> None:
        self.grouped = grouped

    def decide(self, view: TokenView, now: float) -> Step:
        decoding = [task for task in view.running if task.decoding]
        if view.waiting and (self.grouped or not decoding):
            task = next(iter(view.waiting))
            return Step([(task, task.pending)], ())
        return Step((), decoding[:1] if decoding else ALL)


def switching(engine: VllmEngine, prompts: int = 4, tokens: int = 501, repeats: int = 12) -> dict[str, list[float]]:
    """Seconds of *prompts* prompts of *tokens* tokens and a decode step for each, one request a step: "alternating"
    and "grouped", *repeats* times each in turns. From the first step's start to the last one's end, as NeuStream's
    microbenchmark has it."""
    bench = _Bench(engine, lambda _: None)
    found: dict[str, list[float]] = {"alternating": [], "grouped": []}
    with engine.undisturbed():
        for i in range(repeats + 2):
            for name in found:
                bench.install(_Turns(name == "grouped"))
                steps = bench.run("switch", [(tokens, 2)] * prompts)
                if i >= 2:
                    found[name].append(steps[-1].end - steps[0].start)
    engine.empty()
    return found


def flat(steps: Sequence[StepLog]) -> list[list[Any]]:
    """*steps* as lists, for a file."""
    return [[round(v, 6) if isinstance(v, float) else v for v in asdict(step).values()] for step in steps]
