"""What a policy is shown of a worker: to be read, not to be written, and leading nowhere.

`read_only` gives the policy's own view of a `WorkerView`. What never changes stands in it as a copy; what changes is
read through the attributes that both views share, under names that refuse to be set, by `object.__setattr__` too.
Queues are shown as read-only mappings, batches as copies, and what computes an estimate as a callable that tells
nobody what is behind it. So nothing in it leads to the loop, the engine or an executor.

Tasks and requests are shown as they are, since they are written at every iteration. The loop keeps what they must
say in books of its own (`servetwin.core.isolation.task_ledger`, `ServingLoop.known`) and looks into them whenever
it goes by a task."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

from ..llm.policy import Step, TokenView
from ..llm.request import CachingTask, TokenRequest, TokenTask
from ..pipeline import Stage
from ..policy import Batch, Decision, DeviceGroup, Repeat, WorkerView
from ..request import ActingTask, GroupTask, Request, Task
from .answers import write_fault

#: Different arguments that an estimate is kept for.
KEPT = 1 << 14


def opaque(function: Callable[..., Any], keep: int = 0) -> Any:
    """*function* as a callable that does not tell what is behind it; with *keep* it remembers so many results."""
    hidden = functools.lru_cache(maxsize=keep)(function)
    del hidden.__wrapped__
    hidden.__dict__.clear()
    return hidden


class _Fixed:
    """An attribute of a view that is read from the view's own mapping and cannot be set. (Without a ``__get__``, so
    that reading it costs what reading any attribute does.)"""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set__(self, view: object, value: object) -> None:
        raise AttributeError(f"view.{self.name} is not the policy's to set")

    def __delete__(self, view: object) -> None:
        raise AttributeError(f"view.{self.name} is not the policy's to delete")


_share = TokenView.__dict__["__dict__"].__set__
_put = object.__setattr__


def _copied(batch: Batch) -> Batch:
    """A copy of *batch* which shares no list with it."""
    shown = copy.copy(batch)
    for name, value in vars(batch).items():
        if type(value) is list:
            setattr(shown, name, tuple(value))
    return shown


class _Closed:
    """What the two kinds of closed views have in common."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"view.{name} is not the policy's to set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"view.{name} is not the policy's to delete")

    @property
    def __dict__(self) -> Mapping[str, Any]:  # type: ignore[override]
        return MappingProxyType({name: getattr(self, name) for name in _names(type(self))})

    @property
    def in_flight(self) -> Batch | None:
        """A copy of the batch that is computed now."""
        batch: Batch | None = self.batches()[0]  # type: ignore[attr-defined]
        return None if batch is None else _copied(batch)

    @property
    def backlog(self) -> tuple[Batch, ...]:
        """Copies of what was decided ahead of that."""
        return tuple(map(_copied, self.batches()[1]))  # type: ignore[attr-defined]


class ClosedView(_Closed, WorkerView):  # type: ignore[misc, override]
    """A `WorkerView` as a policy is shown it."""

    __slots__ = ("batches", "estimate", "limit_of", "solo")


#: What a policy may ask an engine.
_FUNCTIONS_OF_TOKENS = ("admissible", "blocks_for", "estimate_decode", "estimate_prefill", "estimate_step", "fill")


class ClosedTokenView(_Closed, TokenView):  # type: ignore[misc, override]
    """A `TokenView` as a policy is shown it."""

    __slots__ = (*ClosedView.__slots__, *_FUNCTIONS_OF_TOKENS)

    context = _Fixed("context")  # type: ignore[assignment]
    decoding = _Fixed("decoding")  # type: ignore[assignment]
    free_blocks = _Fixed("free_blocks")  # type: ignore[assignment]
    last_decode = _Fixed("last_decode")  # type: ignore[assignment]
    last_step = _Fixed("last_step")  # type: ignore[assignment]
    max_sequences = _Fixed("max_sequences")  # type: ignore[assignment]


_SAME = ("limit", "name", "peers", "slo_factor", "stage")
_SAME_TOKENS = ("block_size", "blocks", "max_batched_tokens", "watermark", "whole_prompt")


def _names(kind: type) -> list[str]:
    names = [*_SAME, "waiting", "running", "in_flight", "backlog"]
    if kind is ClosedTokenView:
        names += [*_SAME_TOKENS, "slo", "limits", "context", "decoding", "free_blocks", "last_decode", "last_step"]
        names.append("max_sequences")
    return names


def closed(view: WorkerView, *, hide: bool = True) -> Any:
    """*view* as a policy may see it. With *hide* no function in it tells what is behind it; a policy whose code never
    asks a function that does not need it, and does without what it costs."""
    tokens = isinstance(view, TokenView)
    seal = opaque if hide else _as_it_is
    shown: Any = object.__new__(ClosedTokenView if tokens else ClosedView)
    for name in (*_SAME, *(_SAME_TOKENS if tokens else ())):
        _put(shown, name, getattr(view, name))
    _put(shown, "waiting", MappingProxyType(view.waiting))
    _put(shown, "running", MappingProxyType(view.running))
    _put(shown, "estimate", seal(view.estimate, KEPT))
    _put(shown, "limit_of", seal(view.limit_of))
    _put(shown, "solo", seal(view.solo))
    _put(shown, "batches", seal(lambda: (view.in_flight, view.backlog)))
    _put(shown, "_group", view.group.shown(seal))
    if isinstance(view, TokenView):
        _share(shown, TokenView.__dict__["__dict__"].__get__(view))
        _put(shown, "limits", copy.copy(view.limits))
        _put(shown, "slo", closed_slo(view.slo) if hide else view.slo)
        for name in _FUNCTIONS_OF_TOKENS:
            _put(shown, name, seal(getattr(view, name)))
    return shown


def _as_it_is(function: Callable[..., Any], keep: int = 0) -> Any:
    return function


def closed_slo(slo: Any) -> Any:
    """A copy of *slo* that does not tell how it knows what a prefill takes."""
    if slo is None:
        return None
    shown = copy.copy(slo)
    for field in fields(slo) if is_dataclass(slo) else ():
        value = getattr(slo, field.name)
        if callable(value):
            _put(shown, field.name, opaque(value, KEPT))
        elif is_dataclass(value):
            _put(shown, field.name, closed_slo(value))
        elif isinstance(value, Mapping):
            _put(shown, field.name, MappingProxyType({key: closed_slo(own) for key, own in value.items()}))
    return shown


# -- what is the same for all, and must stay so --------------------------------------------------------------

#: Classes that policies meet, and what they must look like at the end of a run.
_MET: tuple[type, ...] = (
    Request, Task, ActingTask, GroupTask, TokenRequest, TokenTask, CachingTask, Batch, Decision, Step, Repeat,
    DeviceGroup, WorkerView, TokenView, ClosedView, ClosedTokenView, _Closed, Stage,
)  # fmt: skip


def _classes() -> list[tuple[type, dict[str, Any]]]:
    return [(kind, dict(vars(kind))) for kind in _MET]


_ASIDE = ("__slotnames__", "__annotations__", "__doc__")
_AT_FIRST = _classes()
_FUNCTIONS = [
    (function, function.__code__)
    for _, members in _AT_FIRST
    for function in members.values()
    if hasattr(function, "__code__")
]


def told(stage: Stage) -> dict[str, Any]:
    """What *stage* says now. (Not by its ``__dict__``: to ask for that slows all its attributes down for good.)"""
    said = {field.name: getattr(stage, field.name) for field in fields(stage)}
    return {name: [*value] if isinstance(value, list) else value for name, value in said.items()}


def look_over(policies: Sequence[object], stages: Sequence[tuple[Stage, dict[str, Any]]]) -> None:
    """Raise `PolicyFault` if a class that policies meet, or one of *stages*, is not as it was. Puts classes back."""
    found: list[tuple[str, str]] = []
    for kind, before in _AT_FIRST:
        now = dict(vars(kind))
        if now != before:
            # (`copy` and `typing` keep things of their own in a class.)
            for name in [n for n in {**before, **now} if n not in _ASIDE and before.get(n) is not now.get(n)]:
                if name in before:
                    type.__setattr__(kind, name, before[name])
                else:
                    type.__delattr__(kind, name)
                found.append((f"{kind.__name__}.{name}", name))
    for function, code in _FUNCTIONS:
        if function.__code__ is not code:
            function.__code__ = code
            found.append((f"{function.__qualname__}.__code__", "__code__"))
    for stage, before in stages:
        now = told(stage)
        found += [(f"{name} of stage {before['name']}", name) for name in before if now[name] != before[name]]
    if found:
        raise write_fault(policies, *found[0])
