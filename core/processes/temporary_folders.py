"""Temporary folders that are removed even where the process that made them is killed (SIGKILL, a full memory).

Who outlives that process does it: a small process (`folder_remover`, some 10 MB, started with the first folder) in a
session of its own, so that a signal to the group does not reach it. It hears of folders through a pipe that only this
process writes to, and removes what is left when that closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from . import folder_remover
from .folder_remover import remove as _remove

_lock = threading.Lock()
_remover: tuple[int, subprocess.Popen[str]] | None = None  # by which process it was started


def make(prefix: str = "servetwin-") -> Path:
    """A new folder, which `remove` removes, or else the end of this process, whatever that is."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _tell("+", folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a *folder* that `make` made, whatever stands in it."""
    _remove(folder)
    if not os.path.lexists(folder):
        _tell("-", folder)


@contextlib.contextmanager
def temporary_folder(prefix: str = "servetwin-") -> Iterator[Path]:
    """A new folder for as long as this lasts."""
    folder = make(prefix)
    try:
        yield folder
    finally:
        remove(folder)


def for_multiprocessing() -> None:
    """Let `multiprocessing` keep the sockets of its servers in a folder that `make` made, not in one that stays."""
    import multiprocessing  # which a run on one core does without

    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if config.get("tempdir") is None:
        config["tempdir"] = str(make("servetwin-"))


def _tell(sign: str, folder: Path) -> None:
    global _remover
    with _lock:
        if _remover is None or _remover[0] != os.getpid():  # one that was forked off has a remover of its own
            command = [sys.executable, "-I", "-S", folder_remover.__file__]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd="/",
                start_new_session=True,
            )
            _remover = os.getpid(), process
        pipe = _remover[1].stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # somebody has killed it: then folders are removed as far as this one can
            pipe.write(f"{sign}{json.dumps(str(folder))}\n")
            pipe.flush()
