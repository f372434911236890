"""A file or folder that one process at a time works on. The lock ends with the process, however that ends, and leaves
nothing on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import BadInput


def open_alone(path: Path, what: str, where: Path) -> int:
    """A file, made if it is not there, or a folder, which no other process has open in this way as long as the given
    descriptor is open. Files are opened for reading and appending.

    Raises `BadInput` if another process has: *what* that does then, with which file or folder (*where*); and if
    *path* is a symbolic link, through which nothing is written, or no plain file.
    """
    plain = not path.is_dir()
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK if plain else os.O_RDONLY
    while True:
        if path.is_symlink() and plain:
            raise BadInput("this is a symbolic link", where=str(path), right="a file of its own: remove the link")
        if path.exists() and plain and not path.is_file():
            raise BadInput("this is no plain file", where=str(path), right="a file of its own: remove what is there")
        try:
            held = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise BadInput(error.strerror or "cannot be made", where=str(path), right="a file of yours") from None
        if not _locked(held):
            os.close(held)
            right = "to wait for it, or another --out"
            raise BadInput(f"another process is {what}", where=str(where), right=right)
        try:  # whoever held it before may have removed it since
            if os.path.samestat(os.stat(path), os.fstat(held)):
                return held
        except FileNotFoundError:
            pass
        os.close(held)


def _locked(held: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
