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

KeyPath = Sequence[str | int]

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
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = f":{mark.line + 1}" if mark is not None else ""
        raise BadInput(f"no valid YAML: {problem}", where=f"{where}{line}") from None


def read(path: Path) -> Any:
    """The content of a YAML file."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a file that the user named. Raises `BadInput` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin files with a byte-order mark
    except FileNotFoundError:
        raise BadInput("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise BadInput("this is a folder, not a file", where=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("this is not a text file (UTF-8)", where=str(path)) from None
    except OSError as error:
        raise BadInput(error.strerror or "the file cannot be read", where=str(path)) from None


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
