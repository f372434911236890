"""Latencies of single requests to a language model, in columns."""

from __future__ import annotations

import sys
from array import array

from servetwin.core import Recorder, Request
from servetwin.core.llm import TokenTask


class TokenLatencies(Recorder):
    """Keeps the latencies of each request that finishes, in the order in which they end: 32 bytes a request.

    *ids*, *ttft*, *tpot* and *e2el* have an entry each: seconds from sending to the first token, mean seconds between
    tokens (0 for a single one), seconds from sending to the last. They are those of the only stage, an LLM engine.
    A simulator that knows this class may fill the columns itself instead of calling `ended`
    (`servetwin.sim.llm.columns`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.ttft, self.tpot = array("l"), array("d"), array("d")
        self.e2el = self.summary.e2el.recent
        self.summary.most = sys.maxsize  # these are told one by one, in their order

    def ended(self, request: Request, now: float) -> None:
        self.summary.ended(request, now)
        if request.finished is None:
            return
        task = request.tasks[0]
        assert isinstance(task, TokenTask)
        assert task.first_token is not None
        gaps = task.generated - 1
        self.ids.append(request.id)
        self.ttft.append(task.first_token - request.arrival)
        self.tpot.append((request.finished - task.first_token) / gaps if gaps else 0.0)
