"""Overrides: keys of an experiment and what they are set to, by ``--set`` or by an option of its own."""

from __future__ import annotations

from typing import Any

Override = tuple[str, Any]


class ByOption(str):
    """A key that the user set by an *option* of its own: ``--policy`` sets the key ``policy``."""

    __slots__ = ("option",)
    option: str

    def __new__(cls, key: str, option: str | None = None) -> ByOption:
        found = super().__new__(cls, key)
        found.option = option or f"--{key}"
        return found


def said(key: str) -> str:
    """What the user wrote to set *key*."""
    return key.option if isinstance(key, ByOption) else f"--set {key}"
