"""Whether an engine had KV memory for a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """An engine's KV memory: *block* tokens to a block, *reserve* blocks that an admission leaves free, *step* tokens
    that a step computes at most; *whole*: a chunk is admitted only if there is memory for all of its prompt. *keeps*:
    who is preempted may find computed tokens again."""

    block: int
    reserve: int
    step: int
    whole: bool
    keeps: bool

    def lacks(self, pending: int, free: int | None) -> bool:
        """Whether a request with *pending* tokens to compute did not fit in *free* blocks (None: not known)."""
        tokens = pending if self.whole else min(pending, self.step)
        return free is not None and -(-tokens // self.block) + self.reserve > free
