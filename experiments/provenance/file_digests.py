"""What files hold, as hashes, each read once for as long as it is what it was; and the code of ServeTwin itself.

A file counts as unchanged while its times (of the content and of the entry), its size and its place on the disk are
the same. Just after it was written that proves nothing, for clocks of file systems tick slowly: then it is read
again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from stat import S_ISREG

Stamp = tuple[int, int, int, int]

#: What stands for the hash of a file that is not there, or is not a file.
MISSING = "missing"

#: A file that was written less than this long ago (ns) may be written again without its times showing it.
_RECENT = 2_000_000_000

#: The packages whose code can change a number, with all that lies below them.
PACKAGES = ("core", "policies", "profiles", "sim", "real", "experiments")

#: What we are built on, whose version can change a number.
_BUILT_ON = ("numpy", "simpy")

_known: dict[str, tuple[Stamp, str]] = {}


def stamp(path: str | Path) -> Stamp | None:
    """What changes when the file does; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not S_ISREG(found.st_mode):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def file_digest(path: str | Path) -> str:
    """A hash of what the file holds now; `MISSING` if it cannot be read."""
    name = str(path)
    before = stamp(name)
    if before is None:
        return MISSING
    known = _known.get(name)
    if known is not None and known[0] == before:
        return known[1]
    try:
        with open(name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return MISSING
    # The content's time alone can be set back; that of the entry cannot.
    if stamp(name) == before and time.time_ns() - max(before[0], before[1]) > _RECENT:
        _known[name] = (before, digest)
    else:
        _known.pop(name, None)
    return digest


def path_digest(path: Path) -> str:
    """As `file_digest`; of a folder, all files below it by name."""
    if not path.is_dir():
        return file_digest(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return combined(f"{p.relative_to(path).as_posix()} {file_digest(p)}" for p in files)


def combined(parts: Iterable[str]) -> str:
    """One hash of several texts."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def own_folders() -> dict[str, Path]:
    """Where the packages of ServeTwin lie, by name."""
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(f"servetwin.{package}")
        assert spec is not None
        assert spec.origin is not None
        found[package] = Path(spec.origin).parent
    return found


class _OwnCode:
    """Our code as it was when this process began to use it. What is changed later was not loaded, or only in part.

    What the files hold is read when it is first asked for, which most commands never do; one that was changed before
    then counts as changed, whatever it holds.
    """

    def __init__(self) -> None:
        self.files = dict(sorted(_python_files(own_folders())))
        self._stamps = {name: stamp(path) for name, path in self.files.items()}
        self._looked = (time.monotonic(), len(sys.modules))
        self._changed: list[str] = []
        recent = time.time_ns() - _RECENT
        # Of files just written the stamp proves nothing: these are read at once.
        self._at_once = {
            name: file_digest(self.files[name])
            for name, found in self._stamps.items()
            if found is not None and max(found[0], found[1]) > recent
        }

    @cached_property
    def digests(self) -> dict[str, str]:
        """What each file held, as a hash, by name."""
        return {name: self._at_once.get(name) or self._digest(name) for name in self.files}

    @cached_property
    def digest(self) -> str:
        """All of it as one hash."""
        return combined(f"{name} {digest}" for name, digest in self.digests.items())

    def _digest(self, name: str) -> str:
        digest = file_digest(self.files[name])
        return digest if stamp(self.files[name]) == self._stamps[name] else f"not {digest}"

    def changed(self) -> list[str]:
        """The files that are no longer what they were; looked up twice a second, and when modules were loaded."""
        digests = self.digests
        at, modules = time.monotonic(), len(sys.modules)
        if at - self._looked[0] > 0.5 or modules != self._looked[1]:
            self._looked = (at, modules)
            self._changed = [name for name, path in self.files.items() if file_digest(path) != digests[name]]
        return self._changed


def _python_files(folders: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Name and path of each file of code below *folders*, which are given by name."""
    for package, folder in folders.items():
        for place, below, files in os.walk(folder):
            below[:] = [name for name in below if name != "__pycache__"]
            inner = place[len(str(folder)) :].replace(os.sep, "/")
            for name in files:
                if name.endswith(".py"):
                    yield f"{package}{inner}/{name}", os.path.join(place, name)


_own = _OwnCode()


def code_digest() -> str:
    """A hash of the code of ServeTwin, below every package, as this process has it."""
    return _own.digest


def code_changed() -> list[str]:
    """The files of ServeTwin that were changed since this process began to use them."""
    return _own.changed()


@cache
def surroundings() -> dict[str, str]:
    """What else can change a number: Python's minor version, the packages that we compute with."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in _BUILT_ON:
        found[package] = installed(package)
    return found


@cache
def installed(package: str) -> str:
    """The version of an installed *package*, by the name that is imported; "" where it does not say."""
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", ""))
