"""What a script is run by: confines its own process, says on a pipe what of that the system allowed, runs the script.

Run as ``python -I sandbox_child.py SETTINGS SCRIPT`` by `servetwin.real.tools.sandbox`; imports nothing but the
standard library."""

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

#: From Linux's headers (sched.h, prctl.h, landlock.h; the system calls' numbers are the same on every machine).
NEW_USER, NEW_NET, NEW_IPC = 0x10000000, 0x40000000, 0x08000000
PARENT_DEATH, NO_NEW_PRIVILEGES = 1, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH = 1
WRITE_FILE = 1 << 1
#: Writing, making, removing and renaming files of any kind; from the second version on also moving between folders,
#: from the third truncating.
WRITES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))
LATER_WRITES = {2: 1 << 13, 3: 1 << 14}

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("access", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def apart() -> bool:
    """Leave the network: a namespace of its own has no interface but a loopback that is down."""
    return bool(_libc.unshare(NEW_USER | NEW_NET | NEW_IPC) == 0)


def write_only_to(folder: str) -> bool:
    """From now on this process and what it starts write to *folder* and nowhere else."""
    version = _libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    access = WRITES | sum(bit for since, bit in LATER_WRITES.items() if version >= since)
    ruleset = _libc.syscall(CREATE_RULESET, ctypes.byref(_Ruleset(access)), ctypes.sizeof(_Ruleset), 0)
    if ruleset < 0:
        return False
    for path, allowed in ((folder, access), (os.devnull, WRITE_FILE)):
        rule = _Beneath(allowed, os.open(path, os.O_PATH))
        if _libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0) != 0:
            return False
    return bool(_libc.syscall(RESTRICT_SELF, ruleset, 0) == 0)


def confine(settings: dict[str, float], folder: str) -> dict[str, bool]:
    """Apply *settings* to this process; gives what is enforced."""
    _libc.prctl(PARENT_DEATH, signal.SIGKILL)
    _libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for limit, amount in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, settings["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, settings["file_bytes"]),
        (resource.RLIMIT_NOFILE, settings["open_files"]),
        (resource.RLIMIT_AS, settings["memory_bytes"]),
    ):
        _, hard = resource.getrlimit(limit)
        most = int(amount) if hard == resource.RLIM_INFINITY else min(int(amount), hard)
        resource.setrlimit(limit, (most, most))
    network = apart()
    return {"no_network": network, "writes_confined": write_only_to(folder), "limits": True}


def main() -> None:
    settings, script = json.loads(sys.argv[1]), sys.argv[2]
    told = int(settings.pop("told"))
    folder = os.getcwd()
    enforced = confine(settings, folder)
    os.write(told, json.dumps(enforced).encode())
    os.close(told)
    if any(not enforced[name] for name in ("no_network", "writes_confined")) and settings["strict"]:
        sys.exit("this system does not confine scripts as was asked")
    sys.argv = [script]
    sys.path.insert(0, folder)
    try:
        runpy.run_path(script, run_name="__main__")
    except MemoryError:
        sys.exit("MemoryError")


if __name__ == "__main__":
    assert Path(sys.argv[2]).is_file()
    main()
