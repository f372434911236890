"""How steps are launched, and what they take on the device, by events on its stream: what profiles are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .in_workers import EVENTS, Workers, apart


@dataclass(frozen=True)
class Launch:
    """How a step was launched: seconds from when the executor was called until the step was launched and until its
    sampling was, and on the GPU its milliseconds from when the step before it was over, or it was begun if that was
    later, and how long the GPU had nothing to do before. On a CPU the last two are nan.

    Where processes of their own launch, *told* are the seconds until they had been told of the step and the engine's
    went on (else nan), and *held* those that they were still at the step before; *launched* and *sampled* are then
    without *held*."""

    launched: float
    sampled: float
    device: float = float("nan")
    idle: float = float("nan")
    told: float = float("nan")
    held: float = 0.0


class LaunchClock:
    """Watches how steps of the engine *core* are launched, by events before and after each on the GPU's stream. Where
    its workers are processes of their own, they watch (`in_workers`)."""

    def __init__(self, core: Any) -> None:
        import torch

        executor = core.model_executor
        self.workers = Workers(executor, events=True) if apart(core) else None
        here = self.workers is None and torch.cuda.is_available()
        self.cuda: Any = torch.cuda if here else None
        self._called: list[tuple[float, float]] = []
        self._spare: list[Any] = []
        self._open: tuple[float, float, Any] | None = None
        self._seen: list[tuple[float, float, Any, Any]] = []
        self._last: Any = None
        if self.cuda is not None:
            self._spare = [self.cuda.Event(enable_timing=True) for _ in range(2 * EVENTS)]
            for event in self._spare:
                event.record()
            self.cuda.synchronize()
        self._execute, self._sample = executor.execute_model, executor.sample_tokens
        executor.execute_model, executor.sample_tokens = self.execute_model, self.sample_tokens

    def execute_model(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        """What vLLM calls to launch a step."""
        if not output.total_num_scheduled_tokens:
            return self._execute(output, *args, **kwargs)
        before = self._event() if self.workers is None else None
        begun = time.monotonic()
        found = self._execute(output, *args, **kwargs)
        self._open = begun, time.monotonic() - begun, before
        return found

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """What vLLM calls to launch its sampling."""
        found = self._sample(*args, **kwargs)
        if self._open is not None:
            begun, launched, before = self._open
            self._open = None
            if self.workers is not None:
                self._called.append((begun, time.monotonic()))
            else:
                self._seen.append((launched, time.monotonic() - begun, before, self._event()))
        return found

    def _event(self) -> Any:
        if self.cuda is None:
            return None
        event = self._spare.pop() if self._spare else self.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> list[Launch]:
        """Of the steps since the last call, in their order; nothing may be in flight."""
        if self.workers is not None:
            return self._of_workers(self.workers)
        seen, self._seen = self._seen, []
        if self.cuda is None:
            return [Launch(launched, sampled) for launched, sampled, _, _ in seen]
        self.cuda.synchronize()
        out = []
        for launched, sampled, before, after in seen:
            own = before.elapsed_time(after)
            since = self._last.elapsed_time(after) if self._last is not None else float("inf")
            gap = self._last.elapsed_time(before) if self._last is not None else float("inf")
            out.append(Launch(launched, sampled, min(own, since), gap))
            self._spare += [before] if self._last is None else [before, self._last]
            self._last = after
        return out

    def _of_workers(self, workers: Workers) -> list[Launch]:
        """What the workers saw of the steps that they were told of since the last call."""
        called, self._called = self._called, []
        out, before = [], 0.0
        for (begun, told), at in zip(called, workers.take(), strict=False):
            held = max(0.0, before - begun)
            since = begun + held
            out.append(
                Launch(at.launched - since, at.sampled - since, at.device, at.idle, told=told - begun, held=held)
            )
            before = at.sampled
        return out
