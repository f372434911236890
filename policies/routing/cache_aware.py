"""Cache-aware routing: where the longest part of the prompt was sent before, unless load is too uneven.

Workers are asked for nothing but how many requests they have. What their caches hold is guessed from what was sent
there: a record of the beginnings of prompts, the oldest of which are forgotten. Source: the policy ``cache_aware`` of
SGLang's router and its descendants (SMG's documentation of cache-aware routing, and vLLM's router), with their
defaults; requests of which too little is known go where the fewest are, as SMG has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from servetwin.core import Request
from servetwin.core.llm import prompt_of
from servetwin.core.parameters import at_least
from servetwin.core.routing import Router, WorkerState


class CacheAware(Router):
    """A worker that more than the share *match* of the prompt was sent to before gets it, of several the one with the
    fewest requests. Else, or if some worker has more than *difference* requests and more than *ratio* times as many
    as another, it goes where the fewest are. *most* beginnings are remembered."""

    def __init__(self, match: float = 0.3, difference: int = 64, ratio: float = 1.5, most: int = 1 << 18) -> None:
        at_least(0, "cache_aware", match=match, difference=difference)
        at_least(1, "cache_aware", ratio=ratio, most=most)
        self.match, self.difference, self.ratio, self.most = match, difference, ratio, most
        #: What was sent, by all that it begins with; and whom to.
        self.sent: OrderedDict[tuple[str, Hashable, int], dict[str, None]] = OrderedDict()

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        stage = workers[0].stage
        prompt, content = prompt_of(request, stage)
        present = {worker.name: worker.present for worker in workers}
        low, high = min(present.values()), max(present.values())
        offered = list(workers)
        keys: list[tuple[str, Hashable, int]] = []
        if content is not None:
            named = content.tokens(prompt)
            keys = [(stage.name, name, content.size) for name in content.chain[: -(-named // content.size)]]
            if high - low <= self.difference or high <= self.ratio * low:
                for place in range(len(keys) - 1, -1, -1):
                    had = self.sent.get(keys[place], {})
                    if min((place + 1) * content.size, named) <= self.match * prompt:
                        break
                    if there := [worker for worker in workers if worker.name in had]:
                        offered = there
                        break
        chosen = min(offered, key=lambda worker: present[worker.name])
        for key in keys:
            self.sent.setdefault(key, {})[chosen.name] = None
            self.sent.move_to_end(key)
        while len(self.sent) > self.most:
            self.sent.popitem(last=False)
        return chosen
