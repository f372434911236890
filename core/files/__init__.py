"""Files that a user names, for reading. Begin with `plain`, which is all there is."""

from __future__ import annotations

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
