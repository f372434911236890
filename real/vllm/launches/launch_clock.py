"""How steps are launched, and what they take on the device, by events on its stream: what profiles are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .in_workers import Workers, apart
from .stream_events import StreamEvents


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
        executor = core.model_executor
        self.workers = Workers(executor, events=True) if apart(core) else None
        self._events = StreamEvents(wanted=self.workers is None)
        self._called: list[tuple[float, float]] = []
        self._open: tuple[float, float, Any] | None = None
        self._seen: list[tuple[float, float, Any, Any]] = []
        self._execute, self._sample = executor.execute_model, executor.sample_tokens
        executor.execute_model, executor.sample_tokens = self.execute_model, self.sample_tokens

    def execute_model(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        """What vLLM calls to launch a step."""
        if not output.total_num_scheduled_tokens:
            return self._execute(output, *args, **kwargs)
        before = self._events.mark()
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
                self._seen.append((launched, time.monotonic() - begun, before, self._events.mark()))
        return found

    def take(self) -> list[Launch]:
        """Of the steps since the last call, in their order; nothing may be in flight."""
        if self.workers is not None:
            return self._of_workers(self.workers)
        seen, self._seen = self._seen, []
        times = self._events.times([(before, after) for *_, before, after in seen])
        return [
            Launch(launched, sampled, *on_gpu) for (launched, sampled, *_), on_gpu in zip(seen, times, strict=True)
        ]

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
