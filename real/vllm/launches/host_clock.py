"""What launching steps takes the host in a run, for `servetwin run --backend vllm` to tell it beside its profile."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from .in_workers import Workers, apart

#: What asking workers raises that have ended, or that were left in the middle of a step: a run that was broken off is
#: told with what broke it, not with that.
BROKEN = (RuntimeError, TimeoutError, TypeError, ValueError)


@dataclass(frozen=True)
class HostLaunch:
    """One step: its *tokens* and *sequences*, and the seconds from when vLLM's executor was called until the step was
    *launched*, and until its sampling was as well (*sampled*)."""

    tokens: int
    sequences: int
    launched: float
    sampled: float


class HostClock:
    """Watches the launches of the engine *core*. The device is not asked for anything: two readings of a clock for
    each step. Only of engines that decide a step ahead; in others a launch waits for its step. Where processes of
    their own launch, a step's time is from when they could begin with it."""

    def __init__(self, core: Any) -> None:
        self._on = False
        self._seen: list[HostLaunch] = []
        self._open: tuple[float, float, Any] | None = None
        self._called: list[tuple[float, int, int]] = []
        executor = core.model_executor
        self.workers = Workers(executor, events=False) if apart(core) else None
        self._execute, self._sample = executor.execute_model, executor.sample_tokens
        executor.execute_model = self._execute_model
        if self.workers is None:
            executor.sample_tokens = self._sample_tokens

    def watch(self, on: bool) -> None:
        """Begin or end to watch."""
        self._on = on
        if self.workers is not None:
            with contextlib.nullcontext() if on else contextlib.suppress(*BROKEN):
                self.workers.watch(on)

    def take(self) -> list[HostLaunch]:
        """Of the steps since the last call, in their order; nothing where workers that launch do not answer, since
        what they ended with is told otherwise."""
        if self.workers is None:
            seen, self._seen = self._seen, []
            return seen
        called, self._called = self._called, []
        try:
            launched = self.workers.take()
        except BROKEN:
            return []
        found, before = [], 0.0
        for (begun, tokens, sequences), at in zip(called, launched, strict=False):
            begun = max(begun, before)
            found.append(HostLaunch(tokens, sequences, at.launched - begun, at.sampled - begun))
            before = at.sampled
        return found

    def _execute_model(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._on or not output.total_num_scheduled_tokens:
            return self._execute(output, *args, **kwargs)
        begun = time.monotonic()
        if self.workers is not None:
            self._called.append((begun, output.total_num_scheduled_tokens, len(output.num_scheduled_tokens)))
            return self._execute(output, *args, **kwargs)
        found = self._execute(output, *args, **kwargs)
        self._open = begun, time.monotonic() - begun, output
        return found

    def _sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        found = self._sample(*args, **kwargs)
        if self._open is not None:
            begun, launched, output = self._open
            self._open = None
            sequences = len(output.num_scheduled_tokens)
            tokens = output.total_num_scheduled_tokens
            self._seen.append(HostLaunch(tokens, sequences, launched, time.monotonic() - begun))
        return found
