"""Speculative decoding: what an engine drafts, which of it is accepted, and what a request and a view say of it.

In each step an engine verifies, for every sequence that decodes, *drafts* tokens that something cheaper proposed: it
keeps those up to the first that the model itself would not have given, and one of the model's own, so 1 to *drafts* +
1 tokens come out at one moment (Leviathan et al., ICML 2023; vLLM's ``num_speculative_tokens``). Which drafts are
accepted is drawn here, by position, since no text is generated.

>>> speculation = Speculation(3, (0.8, 0.8, 0.8))
>>> round(speculation.mean, 4), round((1 - 0.8**4) / (1 - 0.8), 4)
(2.952, 2.952)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from ..arithmetic import float_sum
from ..errors import BadInput
from ..pipeline import Stage
from ..random_streams import stream
from ..request import Place, Request
from .policy import Chunk, TokenView
from .request import Adapted, CachingTask, TokenTask


@dataclass(frozen=True)
class Speculation:
    """So many *drafts* in each step; that at position i (from 0) is accepted with probability ``acceptance[i]`` if
    all before it were. An engine keeps memory for *lookahead* tokens beyond those of a step (vLLM: as many as drafts
    where a model with keys and values of its own drafts, none for n-grams). Where what drafts *reads_states* of the
    model (vLLM: eagle), the last block of what a prefix cache has is computed anew. Raises `BadInput` for other
    numbers."""

    drafts: int
    acceptance: tuple[float, ...]
    lookahead: int = 0
    seed: int = 0
    reads_states: bool = False

    def __post_init__(self) -> None:
        if self.drafts < 1 or len(self.acceptance) != self.drafts:
            what = f"{self.drafts} drafts and {len(self.acceptance)} probabilities that they are accepted"
            raise BadInput(what, right="1 or more, and one for each")
        if not all(0.0 <= p <= 1.0 for p in self.acceptance):
            raise BadInput(f"the acceptance is {list(self.acceptance)}", right="probabilities, from 0 to 1")

    @property
    def reached(self) -> tuple[float, ...]:
        """With which probability a step accepts so many at least: 1, 2, ..."""
        return tuple(accumulate(self.acceptance, mul))

    @property
    def mean(self) -> float:
        """How many tokens a step gives on average."""
        return 1.0 + float_sum(self.reached)

    def dice(self, request: int, stage: str) -> Callable[[], int]:
        """Draws how many drafts each next step of that *request* accepts: from a stream of its own, so that it does
        not depend on who else is served."""
        falling = [-p for p in self.reached]
        draw = stream(self.seed, f"acceptance/{stage}/{request}").random
        return lambda: bisect_left(falling, -draw())


class SpeculativeTask(CachingTask):
    """A visit to an engine that speculates, which may have no prefix cache: how many tokens were *drafted* for it,
    and how many of them *accepted* (those beyond its last token included)."""

    __slots__ = ("accepted", "drafted", "verified")

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Place | None, prompt: int, limit: int
    ) -> None:
        super().__init__(request, stage, queued, worker, prompt, limit)
        self.verified = self.drafted = self.accepted = 0

    @property
    def decoding(self) -> bool:
        """As of `TokenTask`; of one that is computed anew, not before all of it is: the last token gets no drafts."""
        return self.ticks is not None

    def details(self, tokens: bool = True) -> dict[str, Any]:
        return {**super().details(tokens), "drafted": self.drafted, "accepted": self.accepted}


class SpeculativeAdapterTask(Adapted, SpeculativeTask):
    """Likewise, at an engine with LoRA adapters besides."""

    __slots__ = ("adapter", "adapter_loads")


class SpeculativeView(TokenView):
    """A `TokenView` of an engine where each sequence that decodes takes `EngineLimits.tokens_per_decode` tokens of a
    step, and keeps memory for *lookahead* more."""

    __slots__ = ("lookahead",)

    lookahead: int

    def admissible(self, prefill: Iterable[Chunk], *, decode: int = 0) -> list[Chunk]:
        if self.cache is not None:
            return super().admissible(prefill, decode=decode)
        tokens = self.max_batched_tokens - decode * self.limits.tokens_per_decode
        sequences = self.max_sequences - len(self.running)
        free = self.free_blocks
        taken: list[Chunk] = []
        for task, count in prefill:
            tokens -= count
            if tokens < 0:
                break
            new, whole = self.blocks_of_chunk(task, count)
            if task in self.running:
                free -= new
            else:
                sequences -= 1
                if sequences < 0 or free - max(new, whole) < self.watermark:
                    break
                free -= new
            taken.append((task, count))
        return taken

    def blocks_of_chunk(self, task: TokenTask, count: int) -> tuple[int, int]:
        """New blocks of *task* for *count* more tokens of its prompt, and how many are to be free if it waits."""
        computed, ahead = task.base_computed, self.lookahead
        held = self.blocks_for(computed + ahead) if computed else 0
        new = self.blocks_for(computed + count + ahead) - held
        return new, self.blocks_for(task.prompt + task.base_generated) if self.whole_prompt else new

    def padding(self, pending: int, decode: int, begun: bool) -> int:
        """As in vLLM (0.27), which gives one who has a single token pending as many drafts as those that decode have,
        if nobody computes more: its step is then of one shape."""
        return self.limits.num_speculative_tokens if pending == 1 and decode and not begun else 0
