"""``--json`` as a page: ``python -m servetwin.experiments.cli.json_page > docs/reference/json-output.md``."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from .output.json_output import COMMANDS, Fault, OnHost, Overload, Use, Window, Windows

INTRODUCTION = """\
# JSON output

Every command that prints results prints them as one JSON document with `--json`, on standard output; progress and
remarks go to standard error. The page is made from the program (`python -m servetwin.experiments.cli.json_page`), and
tests hold what commands print to it: a key that is not here is not printed. `?` marks keys that are not always there.
Numbers that are not known, or not finite, are `null`. Errors are as without `--json`: one line on standard error, and
an [exit code](command-line.md). `sweep` and `score`, which write a table to `--out`, need none with `--json`.

`servetwin run --json` prints the content of [`summary.json`](records.md), of a simulation `validity`
([`Validity`](#sweep)), `use` if the run leaves records, with `--windows` a key `windows`, and with
`--host-factor` a list `by_host` of `OnHost`:
"""


def as_markdown() -> str:
    """The page."""
    lines = [INTRODUCTION]
    for kind in (Use, Windows, Window, Overload, Fault, OnHost):
        lines += [f"`{kind.__name__}`:", "", *_rows(kind)]
    lines.pop()
    told: list[Any] = []
    for name, kind in COMMANDS.items():
        if name == "run":
            continue
        lines += [*([] if lines[-1] == "" else [""]), f"## {name}", ""]
        for variant in _variants(kind):
            several = get_origin(variant) is list
            keys = get_args(variant)[0] if several else variant
            lines += ["A list of objects:" if several else "An object:", ""]
            lines += _rows(keys)
            told.append(keys)
            for inner in _nested(keys):
                if inner not in told:
                    told.append(inner)
                    lines += [f"`{inner.__name__}`:", "", *_rows(inner)]
    return "\n".join(lines).rstrip() + "\n"


def _variants(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _nested(kind: Any) -> Iterator[Any]:
    for value in get_type_hints(kind).values():
        for part in get_args(value):
            if is_typeddict(part):
                yield part
                yield from _nested(part)


def _rows(kind: Any) -> list[str]:
    lines = ["| key | is | |", "|---|---|---|"]
    for key, hint in get_type_hints(kind, include_extras=True).items():
        optional, told = "", ""
        while (origin := get_origin(hint)) in (NotRequired, Annotated) or str(origin).endswith("NotRequired"):
            if origin is Annotated:
                told = hint.__metadata__[0]
                hint = hint.__origin__
            else:
                optional, hint = "?", get_args(hint)[0]
        lines.append(f"| `{key}`{optional} | {_name(hint)} | {told} |")
    return [*lines, ""]


def _name(kind: Any) -> str:
    """A type in JSON's words."""
    words = {str: "string", int: "integer", float: "number", bool: "true or false", Any: "", type(None): "null"}
    if kind in words:
        return words[kind]
    if is_typeddict(kind):
        return f"`{kind.__name__}`"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {_name(inner[0])}" if inner[0] is not dict and get_origin(inner[0]) is not dict else "list"
    if origin is dict:
        return "object"
    if origin is tuple:
        return "[" + ", ".join(_name(part) for part in inner) + "]"
    return " or ".join(_name(part) for part in inner)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
