"""Runs scripts that nobody has read, such as code that a model wrote: each in a process of its own, confined.

Enforced for every script: wall-clock and processor time, memory (address space), the size of a file, how many files
are open, no core dumps, no new privileges, an empty environment, standard input closed, a working folder of its own
that is removed afterwards. Where Linux allows it to this user (`confinement` tells), by namespaces, seccomp, Landlock
and a file system in memory, with neither a program nor a daemon beside the kernel:

====================  ==============================================================================
`no_network`          a network namespace without interfaces
`own_processes`       no other process in sight or reach; none of its own left when it ends
`own_files`           it sees Python, its packages, the system's programs and libraries, read-only, and
                      nothing else: no home, no passwords, no ``/sys``, no sockets of others
`bounded_files`       what it writes goes into memory of a bounded size, to a bounded number of files,
                      and is gone with it
`bounded_processes`   a bounded number of processes and threads
`writes_confined`     nothing is written outside its own folders (Landlock)
`no_path_sockets`     no sockets but of the Internet; none of the system calls that a script has no use
                      for, and by which kernels are attacked (mounts, namespaces, keys, tracing, io_uring)
====================  ==============================================================================

The memory of all its processes together is looked at every 0.1 s. Not enforced: a share of the processor (a script
may use all cores while its time lasts). It is no virtual machine: a fault of the kernel itself is not covered.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from servetwin.core import BadInput
from servetwin.core.processes import temporary_folders

CHILD = Path(__file__).with_name("sandbox_child.py")
#: Of a script's output so much is kept, in bytes, from its end.
TAIL = 4096
#: Of the files that it left so many are told.
MOST_FILES = 1000
#: What `strict` asks for.
REQUIRED = ("no_network", "own_processes", "own_files", "bounded_files", "writes_confined", "no_path_sockets")
#: All that may be enforced.
ALL = (*REQUIRED, "bounded_processes", "limits")
#: Seconds beyond its own after which a script is ended from outside.
GRACE = 2.0

_numbers = itertools.count(os.getpid() % 100_000 * 10_000)


@dataclass(frozen=True)
class Limits:
    """What a script may use: *memory_bytes* for each of its processes and for all together, *disk_bytes* and *files*
    for all that it writes. *strict* refuses to run it where this system does not enforce what is `REQUIRED`."""

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 2 << 30
    file_bytes: int = 64 << 20
    open_files: int = 64
    disk_bytes: int = 256 << 20
    files: int = 4096
    processes: int = 64
    strict: bool = True

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name != "strict"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} is {getattr(self, name):g}", where="limits of a script", right="above 0")


@dataclass(frozen=True)
class Result:
    """How a script ended, after so many *seconds*. *reason* is empty if it ended well; *output* is the end of what it
    printed, errors included; *files* are the names of what it left in its folder."""

    reason: str
    seconds: float
    output: str
    files: tuple[str, ...]
    enforced: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reason


def run_script(script: Path, limits: Limits | None = None, *, keep: Path | None = None) -> Result:
    """Run the Python file *script* with this process's interpreter and its packages, within *limits*.

    What it wrote goes to the folder *keep*, if that is given. Raises `BadInput` if there is no such file.
    """
    limits = limits or Limits()
    if not script.is_file():
        raise BadInput("there is no such script", where=str(script), right="a Python file")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    folder = temporary_folders.make("servetwin-script-")
    began = time.monotonic()
    try:
        shutil.copyfile(script, folder / script.name)
        code, late, said, output = _run(folder / script.name, folder, limits, keep)
        seconds = time.monotonic() - began
        enforced = tuple(said.get("enforced", ()))
        files = tuple(said["files"]) if "files" in said else _left(folder, script.name, keep)
        why = "late" if late else said.get("ended", "")
        return Result(_reason(code, why, limits, output), seconds, output, files, enforced)
    finally:
        temporary_folders.remove(folder)


def _left(folder: Path, script: str, keep: Path | None) -> tuple[str, ...]:
    """The names of what a script left in *folder*, where it had no files of its own; plain ones are copied."""
    files = sorted(p for p in folder.iterdir() if p.name not in (script, "output", "told"))[:MOST_FILES]
    for path in files if keep is not None else ():
        if path.is_file() and not path.is_symlink():
            assert keep is not None
            shutil.copyfile(path, keep / path.name)
    return tuple(p.name for p in files)


def _run(script: Path, folder: Path, limits: Limits, keep: Path | None) -> tuple[int, bool, dict[str, Any], str]:
    """Exit code, whether it had to be ended from outside, what its first process told, and the end of its output."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LOGNAME": "script",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with (folder / "output").open("w+b") as output, (folder / "told").open("a+b") as told:
        settings = {
            **asdict(limits),
            "required": REQUIRED,
            "until": time.monotonic() + limits.seconds,
            "number": next(_numbers),
            "told": told.fileno(),
            "keep": str(keep.absolute()) if keep is not None else None,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), json.dumps(settings), str(script)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(told.fileno(),),
            start_new_session=True,
        )
        late = False
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            # Its first process ends it, and tells what files there are; where it has none, this one does.
            try:
                late = _told(told).get("enforced") is None or "own_processes" not in _told(told)["enforced"]
                process.wait(0.0 if late else GRACE)
            except subprocess.TimeoutExpired:
                late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - TAIL))
        return process.returncode, late, _told(told), output.read().decode(errors="replace")


def _told(file: BinaryIO) -> dict[str, Any]:
    """What was said so far, all lines in one."""
    file.seek(0)
    found: dict[str, Any] = {}
    for line in file.read().splitlines():
        with contextlib.suppress(ValueError):
            found.update(json.loads(line))
    return found


def _reason(code: int, why: str, limits: Limits, output: str) -> str:
    if why == "late":
        return f"was not done after {limits.seconds:g} s"
    if why == "memory":
        return f"its processes used more than {limits.memory_bytes >> 20} MiB of memory together"
    if code == 0:
        return ""
    last = output.strip().splitlines()[-1] if output.strip() else ""
    last = "".join(c if c.isprintable() else " " for c in last[:500]).strip()  # no word to the terminal
    if code < 0:
        name = signal.Signals(-code).name
        told = {"SIGXCPU": "used up its processor time", "SIGXFSZ": "wrote too large a file"}
        return told.get(name, f"was killed by {name}")
    return last or f"ended with exit code {code}"


@cache
def confinement() -> tuple[str, ...]:
    """What this system enforces for this user, of `ALL`."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "nothing.py"
        script.write_text("")
        return run_script(script, Limits(strict=False)).enforced
