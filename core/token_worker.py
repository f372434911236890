"""A worker that is an LLM engine, and the batches that it runs: one engine step each, or several decode steps on end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .loop import Worker
from .seam import Batch
from .token_engine import TokenEngine

if TYPE_CHECKING:
    from .loop import ServingLoop
    from .pipeline import Stage
    from .tokens import TokenPolicy, TokenTask, TokenView


class TokenWorker(Worker):
    """Serves an LLM stage with one policy."""

    view: TokenView
    policy: TokenPolicy

    def __init__(self, stage: Stage, policy: TokenPolicy, view: TokenView, *, device: str = "gpu0") -> None:
        super().__init__(stage, policy, view, device=device)

    def attach(self, loop: ServingLoop) -> None:
        self._engine = TokenEngine(loop, self)
