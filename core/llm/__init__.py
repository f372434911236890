"""The core for language models: what a policy decides of an engine, and the engine itself.

Begin with `policy` (what it sees and says, once per step) and `request`; then `serving`, which does what was decided.

==================  ================================================================================================
`policy`            `TokenPolicy`, `TokenView`, `Step`; `Fill`, a rule by which one stands for all others
`request`           `TokenRequest`, and `TokenTask`: its visit to an LLM stage
`orders`            for policies that reorder: the queue by rank, and who is due first, kept between decisions
`limits`, `slo`     what memory and settings allow; deadlines of tokens and latency limits
`prefix_cache`      which KV blocks hold what, who shares them, and which is taken next
`host_tier`         blocks in host memory, behind the prefix cache
`speculation`       what an engine drafts, and which of it is accepted
`batch`             one step, as an executor gets it
`metrics`           latencies and goodput of tokens; `token_gaps`, `metric_blocks`, `window_metrics` are parts of it
`serving`           the engine: a worker that decides and computes step by step
==================  ================================================================================================
"""

from .limits import EngineLimits
from .orders import EarliestDue, WaitingOrder
from .policy import ALL, DECODES, PREFILLS, All, Chunk, Fill, Step, TokenPolicy, TokenView, queue_order
from .prefix_cache import PromptContent, SessionContent
from .request import CachingTask, Follows, Ticks, TokenRequest, Tokens, TokenTask, prompt_of
from .slo import CumulativeSLO, LimitsSLO, TokenDeadlines, TokenLimits, TokenSLO, TokenSLOByClass

__all__ = [
    "ALL",
    "DECODES",
    "PREFILLS",
    "All",
    "CachingTask",
    "Chunk",
    "CumulativeSLO",
    "EarliestDue",
    "EngineLimits",
    "Fill",
    "Follows",
    "LimitsSLO",
    "PromptContent",
    "SessionContent",
    "Step",
    "Ticks",
    "TokenDeadlines",
    "TokenLimits",
    "TokenPolicy",
    "TokenRequest",
    "TokenSLO",
    "TokenSLOByClass",
    "TokenTask",
    "TokenView",
    "Tokens",
    "WaitingOrder",
    "prompt_of",
    "queue_order",
]
