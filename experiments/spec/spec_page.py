"""Experiment files as a page: ``python -m servetwin.experiments.spec.spec_page >
docs/reference/experiment-files.md``.

Every key, its type and default, and what is said of them, are read from `experiment.Experiment` and the classes
that it is made of.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from servetwin.profiles import Kind

from .experiment import Experiment
from .keys.field_types import Strict

INTRODUCTION = """\
# Experiment files

Every key of an experiment file, made from the program (`python -m servetwin.experiments.spec.spec_page`); a test
holds it to that. How to write one: [experiments](../guides/experiments.md). Times are in seconds unless a name ends
in `_ms`, rates in requests per second. An unknown key, a value of another type or out of range is an error in one
line, with exit code 2.

A file may name only what differs from another one. These keys stand at its top besides, and are gone in the resolved
copy that a run keeps (`meta.json`):

| key | is |
|---|---|
| `extends` | a workload's name (`servetwin workloads`), or a file, relative to this one |
| `deployments` | deployments by name; `deployment: NAME` chooses one |
| `variants` | settings of the whole experiment by name; `variant: NAME` chooses one |
"""

#: Where a part is chosen by the value of a key, or by which keys it has, it is named by that.
_CHOOSERS = ("process", "draw", "time")


def as_markdown() -> str:
    """The page."""
    lines = [INTRODUCTION]
    for model in _all_models(Experiment):
        lines += _model_lines(model)
    return "\n".join(lines).rstrip() + "\n"


def _all_models(model: type[Strict], seen: set[type] | None = None) -> Iterator[type[Strict]]:
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            yield from _all_models(inner, seen)


def _models(kind: Any) -> Iterator[type[Strict]]:
    if inspect.isclass(kind) and issubclass(kind, Strict):
        yield kind
    for inner in get_args(kind):
        yield from _models(inner)


def _chosen(model: type[Strict]) -> tuple[str, str] | None:
    """(key, value) by which *model* is chosen among several."""
    for key in _CHOOSERS:
        field = model.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal and field.is_required():
            return key, get_args(field.annotation)[0]
    return None


def _name(model: type[Strict]) -> str:
    return model.__name__.removesuffix("Spec")


def _title(model: type[Strict]) -> str:
    chosen = _chosen(model)
    return f"{_name(model)}: `{chosen[0]}: {chosen[1]}`" if chosen else _name(model)


def _anchor(model: type[Strict]) -> str:
    kept = "".join(c for c in _title(model).lower() if c.isalnum() or c in "-_ ")
    return kept.replace(" ", "-")


def _model_lines(model: type[Strict]) -> Iterator[str]:
    yield f"## {_title(model)}"
    yield ""
    yield (inspect.getdoc(model) or "").replace("``", "`")
    yield ""
    yield "| key | is | default |"
    yield "|---|---|---|"
    for name, field in model.model_fields.items():
        absent = " or `null`" if field.is_required() and type(None) in get_args(field.annotation) else ""
        yield f"| `{field.alias or name}` | {_kind(field.annotation, field.metadata)}{absent} | {_default(field)} |"
    yield ""


def _kind(kind: Any, limits: list[Any]) -> str:
    """The type of a value in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind == Kind:
        return "a kind of table: " + ", ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        told = [m for annotated in inner[1:] for m in getattr(annotated, "metadata", [annotated])]
        return _kind(inner[0], told)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each, limits) for each in inner if each is not type(None))
    if origin is dict:
        return f"names, and for each: {_kind(inner[1], [])}"
    if origin is list:
        return f"list: {_kind(inner[0], [])}"
    if inspect.isclass(kind) and issubclass(kind, Strict):
        chosen = _chosen(kind)
        return f"[{f'`{chosen[1]}`' if chosen else _name(kind)}](#{_anchor(kind)})"
    return {str: "text", bool: "`true`, `false`", Any: "any value"}.get(kind) or _number(kind, limits)


def _number(kind: type, limits: list[Any]) -> str:
    words = ["whole number" if kind is int else "number"]
    for limit in limits:
        for cls, attribute, word in ((Gt, "gt", "above"), (Ge, "ge", "from"), (Lt, "lt", "below"), (Le, "le", "to")):
            bound = getattr(limit, attribute) if isinstance(limit, cls) else None
            if bound is not None and bound != 10**12:
                words.append(f"{word} {bound:g}")
    return " ".join(words)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Strict):
        return "its defaults"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ("", [], {}) else "empty"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
