"""Reads YAML into a schema. Whatever is wrong becomes one line: file, key, what, and what would be right."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from servetwin.core import BadInput
from servetwin.core.files import plain

from .field_types import Fault

#: libyaml reads a profile some ten times as fast as pure Python does.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML that rejects a key given twice, and knows that 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no schema has such a key
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
    return check(_content(path), model, where=str(path))


def read_mapping(path: Path) -> dict[str, object]:
    """The content of *path*, which must be a mapping. Raises `BadInput`."""
    content = _content(path)
    if not isinstance(content, dict):
        raise BadInput(f"holds {_shown(content)}", where=str(path), right="a mapping with keys")
    return content


def _content(path: Path) -> object:
    try:
        with plain(path).open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror or e}", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadInput(_yaml_fault(e), where=str(path)) from None
    except ValueError:  # an integer of thousands of digits, or a date of no day
        right = "numbers of at most 4300 digits, and days that there are"
        raise BadInput("holds a value that is none", where=str(path), right=right) from None


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


class _Fault(NamedTuple):
    kind: str
    path: tuple[int | str, ...]
    given: object
    message: str
    context: dict[str, Any]

    @classmethod
    def of(cls, error: ErrorDetails) -> _Fault:
        kind, path = error["type"], error["loc"]
        if path[-1:] == ("[key]",):  # a key of a mapping, which stands just before
            path = path[:-1]
            kind = "extra_forbidden" if kind == "literal_error" else kind
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input should ").removeprefix("be ")
        return cls(kind, path, error["input"], message, error.get("ctx", {}))


def _translated(error: ValidationError, model: type[BaseModel], where: str) -> BadInput:
    """The first fault, in our words; a key that is not known goes first, for it may explain the others."""
    faults = [_Fault.of(e) for e in error.errors(include_url=False)]
    fault = next((f for f in faults if f.kind == "extra_forbidden"), faults[0])
    more = sum(1 for f in faults if f.path[: len(fault.path)] != fault.path)
    path, kind, given, message = fault.path, fault.kind, fault.given, fault.message
    right: str | None = None
    if kind == "extra_forbidden":
        known = _known(model, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        what, right = f"unknown key {path[-1]!r}", close[0] if close else f"one of {', '.join(known)}"
        path = path[:-1]
    elif kind == "missing":
        what = f"key {path[-1]!r} is missing" if isinstance(path[-1], str) else "has too few entries"
        path = path[:-1]
    elif kind == "value_error":
        what, reason = message, fault.context.get("error")
        if isinstance(reason, Fault):
            path, right = (*path, *reason.path), reason.right
    elif kind in ("too_long", "too_short"):
        what, right = "has too many entries" if kind == "too_long" else "has too few entries", _size(fault.context)
    elif kind == "string_pattern_mismatch":
        what, right = f"is {_shown(given)}", "a name of lower-case letters, digits and . _ -"
    elif kind == "string_too_short":
        what, right = "is empty", "some text"
    else:
        what, right = f"is {_shown(given)}", _PLAIN.get(kind, message)
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    return BadInput(
        what + (f"; and {more} more" if more else ""), where=f"{where}: {key}" if key else where, right=right
    )


#: What pydantic calls by Python's names.
_PLAIN = {
    "model_type": "a mapping with keys",
    "dict_type": "a mapping with keys",
    "tuple_type": "a list",
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
}


def _size(context: dict[str, Any]) -> str:
    return f"{context['max_length']} at most" if "max_length" in context else f"{context['min_length']} at least"


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
