"""Runs scripts that nobody has read, such as code that a model wrote: each in a process of its own, confined.

Enforced for every script: wall-clock and processor time, memory (address space), the size of a file, how many files
are open, no core dumps, no new privileges, an empty environment, standard input closed, a working folder of its own
that is removed afterwards. Where Linux allows it to this user (`confinement` tells): no network (a network namespace
without interfaces), no other process in sight, and none of its own left when it ends (a process namespace), nothing
written outside the working folder (Landlock), no sockets of the file system (seccomp).

Not enforced: what a script reads; how many files it writes or processes it starts, while its time lasts; where there
is no process namespace, a process that leaves the session survives until it is out of processor time. It is a guard
against code that is wrong, not against one that attacks the kernel.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from servetwin.core import BadInput
from servetwin.core.processes import temporary_folders

CHILD = Path(__file__).with_name("sandbox_child.py")
#: Of a script's output so much is kept, in bytes, from its end.
TAIL = 4096
#: Of the files that it left so many are told.
MOST_FILES = 1000


@dataclass(frozen=True)
class Limits:
    """What a script may use. *strict* refuses to run it where network and writes cannot be confined."""

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 2 << 30
    file_bytes: int = 64 << 20
    open_files: int = 64
    strict: bool = True

    def __post_init__(self) -> None:
        for name in ("seconds", "cpu_seconds", "memory_bytes", "file_bytes", "open_files"):
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
    folder = temporary_folders.make("servetwin-script-")
    began = time.monotonic()
    try:
        shutil.copyfile(script, folder / script.name)
        reason, enforced, output = _run(folder / script.name, folder, limits)
        seconds = time.monotonic() - began
        ours = {script.name, "output"}
        files = heapq.nsmallest(MOST_FILES, (p for p in folder.iterdir() if p.name not in ours))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in files:
                if path.is_file() and not path.is_symlink():
                    shutil.copyfile(path, keep / path.name)
        return Result(reason, seconds, output, tuple(p.name for p in files), enforced)
    finally:
        temporary_folders.remove(folder)


def _run(script: Path, folder: Path, limits: Limits) -> tuple[str, tuple[str, ...], str]:
    hear, tell = os.pipe()
    settings = json.dumps({**asdict(limits), "told": tell})
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), settings, str(script)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(tell,),
            start_new_session=True,
        )
        os.close(tell)
        late = False
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()
        said = os.read(hear, 4096)
        os.close(hear)
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - TAIL))
        text = output.read().decode(errors="replace")
    enforced = tuple(k for k, v in (json.loads(said) if said else {}).items() if v)
    return _reason(process.returncode, late, limits, text), enforced, text


def _reason(code: int, late: bool, limits: Limits, output: str) -> str:
    if late:
        return f"was not done after {limits.seconds:g} s"
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
    """What this system enforces for this user: of "limits", "no_network", "own_processes", "writes_confined" and
    "no_path_sockets"."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "nothing.py"
        script.write_text("")
        return run_script(script, Limits(strict=False)).enforced
