"""YAML as our files use it, and the line on which a key stands.

The loader is stricter and plainer than YAML 1.1: a key given twice is an error, ``yes`` and ``off`` and dates are
strings, ``1e3`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from servetwin.core import BadInput
from servetwin.core.files import plain

KeyPath = Sequence[str | int]

#: Spreadsheets begin files with a byte-order mark.
ENCODING = "utf-8-sig"

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader with fewer surprises."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_DROPPED = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf))$"),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse(text: str, where: str) -> Any:
    """The value that *text* says. Raises `BadInput`, with the line, if it is no YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise _no_yaml(error, where) from None
    except ValueError:
        raise _no_value(where) from None


def read(path: Path, where: str | None = None) -> tuple[Any, str]:
    """What a YAML file says, and its text; *where* is what to call it. Raises `BadInput` if it cannot be read."""
    try:
        text = plain(path).read_text(encoding=ENCODING)
        return yaml.load(text, _Loader), text
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(error, path) from None
    except yaml.YAMLError as error:
        raise _no_yaml(error, where or str(path)) from None
    except ValueError:
        raise _no_value(where or str(path)) from None


def _no_value(where: str) -> BadInput:
    """The error for an integer of thousands of digits, or a date of no day."""
    right = "numbers of at most 4300 digits, and days that there are"
    return BadInput("holds a value that is none", where=where, right=right)


def read_text(path: Path) -> str:
    """The text of a file that the user named. Raises `BadInput` if it cannot be read."""
    try:
        return plain(path).read_text(encoding=ENCODING)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(error, path) from None


def _no_yaml(error: yaml.YAMLError, where: str) -> BadInput:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = f":{mark.line + 1}" if mark is not None else ""
    if "yaml.org,2002:merge" in problem:
        raise BadInput(
            "merge keys (<<) are not read", where=f"{where}{line}", right="the keys themselves, or extends"
        )
    return BadInput(f"no valid YAML: {problem}", where=f"{where}{line}")


def _unreadable(error: OSError | UnicodeDecodeError, path: Path) -> BadInput:
    what = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "this is a folder, not a file",
        UnicodeDecodeError: "this is not a text file (UTF-8)",
    }.get(type(error))
    return BadInput(what or getattr(error, "strerror", None) or "the file cannot be read", where=str(path))


def write(value: Any) -> str:
    """*value* as YAML text, in the order given; `parse` reads the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def line_of(text: str, path: KeyPath) -> int | None:
    """The line, counted from 1, of the deepest key of *path* that *text* holds; None if it has not even the first."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        return None
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(k, v) for k, v in node.value if k.value == str(part)]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
