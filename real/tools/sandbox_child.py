"""What a script is run by: confines its own process, says on a pipe what of that the system allowed, runs the script.

Run as ``python -I sandbox_child.py SETTINGS SCRIPT`` by `servetwin.real.tools.sandbox`; imports nothing but the
standard library."""

import ctypes
import json
import os
import resource
import runpy
import signal
import struct
import sys
from pathlib import Path

#: From Linux's headers (sched.h, prctl.h, landlock.h; the system calls' numbers are the same on every machine).
NEW_USER, NEW_PID, NEW_NET, NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
PARENT_DEATH, SECCOMP, NO_NEW_PRIVILEGES = 1, 22, 38
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


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.c_void_p))


#: By machine: how seccomp knows it, and the numbers of its calls ``socket`` and ``io_uring_setup``.
MACHINES = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}


def apart() -> bool:
    """Leave the network and all other processes: a network namespace of its own has no interface but a loopback that
    is down; what is started from here on sees, and can signal, only itself."""
    return bool(_libc.unshare(NEW_USER | NEW_PID | NEW_NET | NEW_IPC) == 0)


def no_path_sockets() -> bool:
    """From now on no socket of the file system is opened: a helper outside may listen there, whatever the network."""
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    arch, socket, ring = machine
    load, equal, above, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    # Each step: what to do, how far to jump if so and if not, with what. At 0 stands the call's number, at 4 the
    # machine, at 16 the first argument.
    steps = [
        *((load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill)),
        *((load, 0, 0, 0), (above, 0, 1, 0x40000000), (answer, 0, 0, refuse)),
        *((equal, 0, 1, ring), (answer, 0, 0, refuse), (equal, 0, 3, socket)),
        *((load, 0, 0, 16), (equal, 0, 1, 1), (answer, 0, 0, refuse), (answer, 0, 0, allow)),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Filter(len(steps), ctypes.addressof(buffer))
    return bool(_libc.prctl(SECCOMP, 2, ctypes.byref(program), 0, 0) == 0)


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
    alone = apart()
    found = {"no_network": alone, "own_processes": alone, "writes_confined": write_only_to(folder), "limits": True}
    return {**found, "no_path_sockets": no_path_sockets()}


def in_its_own_processes() -> None:
    """Go on in a process that is the second of its namespace: the first waits for it, and when that is over, the
    kernel ends all that was started there. This process then ends as the script's did."""
    hear, tell = os.pipe()
    first = os.fork()
    if first:
        os.close(tell)
        said = os.read(hear, 64)
        _, status = os.waitpid(first, 0)
        _end_as(int(said) if said else status)
    _libc.prctl(PARENT_DEATH, signal.SIGKILL)
    os.close(hear)
    script = os.fork()
    if not script:
        os.close(tell)
        return
    while True:
        ended, status = os.wait()
        if ended == script:
            os.write(tell, str(status).encode())
            os._exit(0)


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) not in (9, 19) else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def main() -> None:
    settings, script = json.loads(sys.argv[1]), sys.argv[2]
    told = int(settings.pop("told"))
    folder = os.getcwd()
    enforced = confine(settings, folder)
    os.write(told, json.dumps(enforced).encode())
    os.close(told)
    if any(not enforced[name] for name in ("no_network", "writes_confined")) and settings["strict"]:
        sys.exit("this system does not confine scripts as was asked")
    if enforced["own_processes"]:
        in_its_own_processes()
    sys.argv = [script]
    sys.path.insert(0, folder)
    try:
        runpy.run_path(script, run_name="__main__")
    except MemoryError:
        sys.exit("MemoryError")


if __name__ == "__main__":
    assert Path(sys.argv[2]).is_file()
    main()
