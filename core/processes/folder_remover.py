"""Removes folders of a process that is no more: run as ``python -I -S folder_remover.py`` by `temporary_folders`.

It reads lines from its standard input, ``+FOLDER`` and ``-FOLDER`` (as JSON, for a name may hold anything), and when
that is closed removes the folders that are left. It imports nothing but the standard library."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import stat
import sys
import time
from pathlib import Path

#: How often, and after how many seconds each time, a folder is tried again in which others may still write: they are
#: being killed as well.
TRIES, BETWEEN = 20, 0.25


def remove(folder: Path) -> None:
    """Remove *folder*, however deep and long-named what stands in it: each folder is emptied into the top one, so
    that no path and no number of open files grows with the depth. What cannot be removed is left."""
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            names, made, mark = os.listdir(top), 0, secrets.token_hex(8)
            while names:
                name = names.pop()
                with contextlib.suppress(OSError):
                    if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                        os.unlink(name, dir_fd=top)
                        continue
                    os.chmod(name, 0o700, dir_fd=top)
                    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                    try:
                        for below in os.listdir(inner):
                            if stat.S_ISDIR(os.lstat(below, dir_fd=inner).st_mode):
                                made += 1
                                os.chmod(below, 0o700, dir_fd=inner)
                                os.rename(below, f"{mark}{made}", src_dir_fd=inner, dst_dir_fd=top)
                                names.append(f"{mark}{made}")
                            else:
                                os.unlink(below, dir_fd=inner)
                    finally:
                        os.close(inner)
                    os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
        os.rmdir(folder)


def main() -> None:
    """Read until the end, then remove what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folders: dict[str, None] = {}
    for line in sys.stdin:
        sign, folder = line[0], json.loads(line[1:])
        if sign == "+":
            folders[folder] = None
        else:
            folders.pop(folder, None)
    for attempt in range(TRIES):
        for folder in list(folders):
            remove(Path(folder))
            if not os.path.lexists(folder):
                del folders[folder]
        if not folders:
            break
        if attempt + 1 < TRIES:
            time.sleep(BETWEEN)


if __name__ == "__main__":
    main()
