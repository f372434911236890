"""Rows that were computed once: kept by the key of their point, across sweeps, searches and crashes.

A key is a hash of everything that can change a row (see `servetwin.experiments.sweeps.point`), so nothing in the
cache is ever out of date: a changed profile, policy or line of code has other keys. Rows have checksums (see
`servetwin.experiments.provenance.stored_rows`), so what was damaged is not there. The cache is one SQLite file in
``$SERVETWIN_CACHE``, or else in the user's cache folder; it may be deleted at any time. Where none can be
written, everything works without.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..provenance.stored_rows import Kept, Row, decode, encode


def folder() -> Path:
    """Where the cache lies."""
    chosen = os.environ.get("SERVETWIN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servetwin"


class Cache(Mapping[str, Row]):
    """Rows by key. Each is written as it comes, so that a killed process loses none that was finished."""

    def __init__(self, where: Path | None = None) -> None:
        self._database: sqlite3.Connection | None = None
        place = where or folder()
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(place / "points.sqlite", timeout=30.0, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, row TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error):
            self.close()

    def __getitem__(self, key: str) -> Row:
        kept = self.find(key)
        if kept is None:
            raise KeyError(key)
        return kept.row

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter([key for (key,) in self._ask("SELECT key FROM rows") if key in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def find(self, key: str) -> Kept | None:
        """What is kept under *key*, whole and still true."""
        found = self._ask("SELECT row FROM rows WHERE key = ?", key)
        entry = decode(found[0][0], key) if found else None
        return entry[1] if entry is not None and entry[1].holds() else None

    def add(self, key: str, row: Row, reads: Mapping[str, str] | None = None) -> None:
        """Keep *row*, for as long as the files *reads* (by path, with their hashes) are what they are."""
        self._ask("INSERT OR REPLACE INTO rows VALUES (?, ?)", key, encode(key, Kept(row, reads or {})))

    def close(self) -> None:
        """Let go of the file; the cache is empty from now on."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, statement: str, *values: Any) -> list[Any]:
        if self._database is None:
            return []
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error:
            return []
