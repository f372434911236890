"""What `test_simulating_processes` has processes do. In a module of its own: a process imports it by name, and finds
it wherever tests were begun."""

from __future__ import annotations

import time
from pathlib import Path

from servetwin.core import BadInput


def raise_bad_input() -> None:
    raise BadInput("wrong", where="here", right="another")


def await_file(path: Path) -> str:
    """Wait for a file, as long as it takes."""
    path.with_suffix(".begun").touch()
    while not path.exists():
        time.sleep(0.01)
    return "there"
