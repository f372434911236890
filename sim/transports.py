"""How long requests are under way between two workers, or from the client: which costs of profiles make that up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from servetwin.core import Task, Worker
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm.request import TokenTask
from servetwin.profiles import Profile, costs
from servetwin.profiles.tables.cost import Cost

#: How long a request is under way, in seconds; asked once per request, given its task there.
Delay = Callable[[Task], float]


def together(delays: Sequence[Delay]) -> Delay:
    """A delay as long as all of these together."""
    return delays[0] if len(delays) == 1 else lambda task: float_sum(delay(task) for delay in delays)


def before_engine(cost: Cost) -> Delay:
    """What a server takes before its engine has a request: by the tokens of its prompt, where the cost is a line."""
    if cost.line is None:
        seconds = cost.scalar()
        return lambda _: seconds
    constant, each = cost.line.constant, cost.line.per_request

    def delay(task: Task) -> float:
        assert isinstance(task, TokenTask)  # only engines may have the cost
        return constant + each * task.prompt

    return delay


def transports(source: Worker | None, target: Worker, profile: Profile) -> list[str]:
    """The costs that make up the way from *source* (None: the client) to *target*, whose device's is *profile*."""
    last = "client" if source is None else source.stage.modules[-1]
    names = _way(last, target.stage.modules[0], source is not None and source.device != target.device)
    return [name for name in names if name in profile.costs]


@cache  # of many replicas every pair is asked for
def _way(last: str, first: str, apart: bool) -> Sequence[str]:
    return [costs.TRANSPORT(last, first), *([costs.BETWEEN_DEVICES()] if apart else [])]
