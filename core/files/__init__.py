"""Files and folders that a user names: for reading, begin with `plain`; folders for results are made by `make`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def plain(path: Path) -> Path:
    """*path*, if it is a plain file or a link to one: with a pipe, a device or a socket a reader would wait for ever,
    or find no end. Raises `OSError` as `open` would, and for these with a word of its own."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no plain file, but a pipe, a device or a socket", str(path))
    return path


def absolute(path: Path) -> Path:
    """*path* from the root on. A link keeps its name, so that messages name what the user wrote; only where ``..``
    leads out of a linked folder it is what that leads to."""
    plain_one, real = Path(os.path.abspath(path)), path.resolve()
    return plain_one if plain_one.resolve() == real else real


#: Folders that this process has made for results, in that order.
_MADE: list[Path] = []


def make(folder: Path) -> list[Path]:
    """Make *folder*, and what is missing of the folders above it; gives those that were made, the uppermost first.
    Raises `OSError`."""
    missing = [folder] if not folder.exists() else []
    while missing and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    made = missing[::-1]
    _MADE.extend(made)
    return made


def remove_empty(made: list[Path] | None = None) -> None:
    """Remove those of *made* (None: of all folders that `make` made in this process) that hold nothing: what has
    failed leaves none behind."""
    for folder in reversed(_MADE if made is None else made):
        with contextlib.suppress(OSError):  # it holds something, or is gone
            folder.rmdir()
