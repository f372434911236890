"""Reads YAML into a schema. Whatever is wrong becomes one line: file, key, what, and what would be right."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from servetwin.core import BadInput

#: libyaml reads a profile some ten times as fast as pure Python does.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML that rejects a key given twice, and knows that 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


M = TypeVar("M", bound=BaseModel)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(path: Path, model: type[M]) -> M:
    """The content of *path* as a *model*. Raises `BadInput`."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror or e}", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadInput(_yaml_fault(e), where=str(path)) from None
    return check(content, model, where=str(path))


def check(content: object, model: type[M], *, where: str) -> M:
    """*content* as a *model*. Raises `BadInput` for the first thing that is wrong."""
    if not isinstance(content, dict):
        raise BadInput(f"holds {_shown(content)}", where=where, right=f"keys: {', '.join(_keys(model))}")
    try:
        return model.model_validate(content)
    except ValidationError as e:
        raise _translated(e, model, where) from None


def _yaml_fault(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        return f"{place}{error.problem or error.context}"
    return "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else " ".join(str(error).split())


def _translated(error: ValidationError, model: type[BaseModel], where: str) -> BadInput:
    fault = error.errors(include_url=False)[0]
    more = error.error_count() - 1
    path, kind, given = fault["loc"], fault["type"], fault["input"]
    if path and path[-1] == "[key]":
        path, kind = path[:-2], "extra_forbidden" if kind == "literal_error" else "key"
        path = (*path, str(given))
    right: str | None = None
    if kind == "extra_forbidden":
        known = _known(model, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        what, right = f"unknown key {path[-1]!r}", close[0] if close else f"one of {', '.join(known)}"
        path = path[:-1]
    elif kind == "missing":
        what = f"key {path[-1]!r} is missing"
        path = path[:-1]
    elif kind == "value_error":
        what = fault["msg"].removeprefix("Value error, ")
    else:
        message = fault["msg"].removeprefix("Input should ").removeprefix("be ")
        what, right = f"is {_shown(given)}", message
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    suffix = f"; and {more} more" if more else ""
    return BadInput(what + suffix, where=f"{where}: {key}" if key else where, right=right)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)


def _known(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed at *path* of *model*."""
    at: Any = model
    for step in path:
        if isinstance(at, type) and issubclass(at, BaseModel):
            at = at.model_fields[str(step)].annotation
        else:
            at = _args(at)[-1 if isinstance(step, str) else 0]
        at = _bare(at)
    if isinstance(at, type) and issubclass(at, BaseModel):
        return _keys(at)
    return [str(k) for k in typing.get_args(_bare(_args(at)[0]))]


def _args(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(_bare(annotation))


def _bare(annotation: Any) -> Any:
    """An annotation without Annotated and without "or None"."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
        else:
            return annotation
