"""Requests as a test says them: a number where nothing else matters, else a `Job` or a `Prompt`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

from ..errors import BadInput
from ..llm.request import TokenRequest
from ..request import Request, Task

#: The name of the module that a policy under test serves.
MODULE = "model"


@dataclass(frozen=True)
class Job:
    """A request for so many *iterations*, sent *at* that time (seconds), due *slo* seconds later.

    Of one that runs already *left* iterations remain. *priority* (lower is sooner), *tenant* and *weight* are as in
    `servetwin.core.Request`. Raises `BadInput` if a number makes no sense.
    """

    iterations: int = 50
    left: int | None = None
    at: float = 0.0
    slo: float = inf
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _whole("iterations", self.iterations, 1, None)
        if self.left is not None:
            _whole("left", self.left, 1, self.iterations)
        _time("at", self.at)
        _time("slo", self.slo, endless=True)

    def request(self, number: int) -> Request:
        """The request of that id."""
        return _marked(Request(number, self.at, self.slo, {MODULE: self.iterations}), self)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Prompt:
    """A request to a language model: *tokens* of prompt, sent *at* that time (seconds).

    It will put out *output* tokens, which no policy can know, and declares *limit* (by default the same) as the most.
    *predicted* is what a predictor says, if there is one. Of one that runs already *generated* tokens are out, or, if
    its prompt is not computed yet, *computed* tokens of that are. *priority*, *tenant* and *weight* are as in `Job`.
    Raises `BadInput` if a number makes no sense.
    """

    tokens: int = 100
    output: int = 300
    limit: int | None = None
    generated: int = 0
    computed: int | None = None
    at: float = 0.0
    predicted: int | None = None
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _whole("tokens", self.tokens, 1, None)
        _whole("output", self.output, 1, None)
        if self.limit is not None:
            _whole("limit", self.limit, 1, None)
        _whole("generated", self.generated, 0, min(self.output, self.limit or self.output) - 1)
        if self.computed is not None:
            _whole("computed", self.computed, 1, self.tokens - 1)
            if self.generated:
                raise BadInput("computed is for a prompt of which no token is out yet", right="one of the two")
        _time("at", self.at)

    def request(self, number: int) -> TokenRequest:
        """The request of that id."""
        tokens = {MODULE: (self.tokens, self.output if self.limit is None else self.limit)}
        request = _marked(TokenRequest(number, self.at, tokens, {MODULE: self.output}), self)
        if self.predicted is not None:
            request.predicted = {MODULE: self.predicted}
        return request  # type: ignore[no-any-return]


AnyJob = TypeVar("AnyJob", Job, Prompt)


def jobs(given: Iterable[int | tuple[int, int] | Job]) -> list[Job]:
    """*given* as jobs: a number is iterations, a pair is (iterations, left)."""
    return [_read(item, Job, "iterations") for item in given]


def prompts(given: Iterable[int | tuple[int, int] | Prompt]) -> list[Prompt]:
    """*given* as prompts: a number is tokens of a prompt, a pair is (tokens of the prompt, tokens that are out)."""
    return [_read(item, Prompt, "tokens") for item in given]


def _read(item: Any, kind: type[AnyJob], what: str) -> AnyJob:
    if isinstance(item, kind):
        return item
    if isinstance(item, bool) or not isinstance(item, int | tuple) or (isinstance(item, tuple) and len(item) != 2):
        right = f"a {kind.__name__}, a number of {what}, or a pair"
        raise BadInput(f"{item!r} is no request", where=f"a list of {kind.__name__}s", right=right)
    if isinstance(item, int):
        return kind(item)
    first, second = item
    return Job(first, left=second) if kind is Job else Prompt(first, generated=second)  # type: ignore[return-value]


def in_order(given: Sequence[AnyJob]) -> list[AnyJob]:
    """*given* in order of arrival; equals stay as they are."""
    return sorted(given, key=lambda job: job.at)


def _marked(request: Any, job: Job | Prompt) -> Any:
    """*request* with priority, tenant and weight of *job*."""
    for name, usual in (("priority", 0), ("tenant", ""), ("weight", 1.0)):
        if (value := getattr(job, name)) != usual:
            setattr(request, name, value)
    return request


def _whole(name: str, value: object, least: int, most: int | None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        raise BadInput(f"{name} is {value!r}", right=f"a whole number from {least}" + (f" to {most}" if most else ""))


def _time(name: str, value: object, endless: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == inf:
        if endless and value == inf:
            return
        raise BadInput(f"{name} is {value!r}", right="seconds")


def ids(tasks: Iterable[Task]) -> list[int]:
    """The ids of *tasks*, in their order."""
    return [task.id for task in tasks]
