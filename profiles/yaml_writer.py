"""Profile files as text: lists on one line, long ones folded; a table that stands twice is written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


class Flow(dict[str, Any]):
    """A mapping to be written on one line."""


class Anchored(dict[str, Any]):
    """A mapping that stands in a file more than once, and is written once."""

    def __init__(self, content: dict[str, Any], anchor: str) -> None:
        super().__init__(content)
        self.anchor = anchor


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, Anchored)

    def generate_anchor(self, node: yaml.Node) -> str:
        return str(vars(node)["anchor"])

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _flow_list(dumper: _Dumper, data: Sequence[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _flow_map(dumper: _Dumper, data: Flow) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)


def _anchored(dumper: _Dumper, data: Anchored) -> yaml.Node:
    node = dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)
    node.anchor = data.anchor  # type: ignore[attr-defined]
    return node


_Dumper.add_representer(list, _flow_list)
_Dumper.add_representer(Flow, _flow_map)
_Dumper.add_representer(Anchored, _anchored)


def text(data: dict[str, Any], by: str = "python -m servetwin.profiles.neustream_artifact") -> str:
    """A profile file as YAML, made *by* a command."""
    body = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=116)
    return f"# Made by `{by}`; times in seconds.\n{body}"
