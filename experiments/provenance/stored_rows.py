"""Rows as they are kept, in the cache and beside a sweep under way: each with a checksum, and with the files that its
policy read without declaring them. A row that was damaged, or whose files have changed, is not given out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .file_digests import path_digest

Row = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A row, and by path the hashes of further files that it depends on."""

    row: Row
    reads: Mapping[str, str] = field(default_factory=dict)

    def holds(self) -> bool:
        """Whether these files still are what they were."""
        return all(path_digest(Path(path)) == digest for path, digest in self.reads.items())


def _checksum(key: str, row: Row, reads: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([key, row, reads]).encode()).hexdigest()


def encode(key: str, kept: Kept) -> str:
    """One line of JSON."""
    reads = dict(kept.reads)
    return json.dumps({"key": key, "row": kept.row, "reads": reads, "sum": _checksum(key, kept.row, reads)})


def decode(line: str | bytes, key: str | None = None) -> tuple[str, Kept] | None:
    """The key and what was kept under it; None if *line* is not what `encode` wrote (for *key*, if it is given)."""
    try:
        entry = json.loads(line)
        found, row, reads = entry["key"], entry["row"], entry["reads"]
        whole = isinstance(row, dict) and isinstance(reads, dict) and entry["sum"] == _checksum(found, row, reads)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not whole or (key is not None and found != key):
        return None
    return found, Kept(row, reads)
