"""Case 22: what scripts tried against the run, its user and its machine; each attempt ends within the script.

A script attacks as a program would: it is run, and what the attempt was after is looked at from outside.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servetwin.real.tools.sandbox import REQUIRED, Limits, confinement, run_script

pytestmark = pytest.mark.skipif(
    not set(REQUIRED) <= set(confinement()), reason="this system does not confine scripts for this user"
)
LIMITS = Limits(seconds=20.0)


@pytest.fixture
def ran(tmp_path: Path):
    def run(text: str, limits: Limits = LIMITS, keep: Path | None = None):
        (tmp_path / "attack.py").write_text(text)
        return run_script(tmp_path / "attack.py", limits, keep=keep)

    return run


@pytest.fixture
def bystander():
    """A process of the same user."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    yield process
    process.kill()
    process.wait()


# -- other processes ----------------------------------------------------------------------------------------------

SIGNALS = ["os.kill({n}, 9)", "os.kill({n}, 19)", "os.kill(-1, 9)", "os.killpg({n}, 9)", "signal.pidfd_send_signal("
           "os.pidfd_open({n}), 9)"]  # fmt: skip


@pytest.mark.parametrize("attack", SIGNALS)
def test_22_case_no_other_process_is_signalled(attack, ran, bystander) -> None:
    for number in (bystander.pid, os.getpid()):
        ran("import os, signal\n" + attack.format(n=number))
    assert bystander.poll() is None
    state = Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "S"


def test_22_case_no_limits_of_others_are_set(ran, bystander) -> None:
    before = resource.prlimit(bystander.pid, resource.RLIMIT_NOFILE)
    for number in (bystander.pid, os.getpid(), "os.getppid()", 1):
        result = ran(f"import os\nfrom resource import *\nprlimit({number}, RLIMIT_NOFILE, (3, 3))")
        assert not result.ok
    assert resource.prlimit(bystander.pid, resource.RLIMIT_NOFILE) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3


def test_22_case_no_limit_is_raised(ran) -> None:
    for limit in ("RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE"):
        assert not ran(f"from resource import *\nsetrlimit({limit}, (1 << 40, 1 << 40))").ok


def test_22_case_the_process_list_holds_its_own_only(ran, bystander) -> None:
    text = "import os\nprint(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))"
    numbers = eval(ran(text).output)
    assert len(numbers) <= 3
    assert max(numbers) < 100


@pytest.mark.parametrize("name", ["environ", "mem", "maps", "root", "cwd", "fd"])
def test_22_nothing_is_read_of_its_keeper(name, ran) -> None:
    """The first of its process namespace, which has the rights that the script has not."""
    text = f"import os\np = '/proc/1/{name}'\nprint(os.listdir(p) if os.path.isdir(p) else open(p, 'rb').read(9))"
    result = ran(text)
    assert not result.ok or result.output in ("[]\n", "b''\n"), result.output


@pytest.mark.parametrize("call", ["os.kill(1, 9)", "os.kill(1, 19)", "os.kill(os.getppid(), 15)"])
def test_22_its_keeper_is_not_ended(call, ran) -> None:
    result = ran(f"import os\ntry: {call}\nexcept OSError: pass\nprint('on')")
    assert result.output == "on\n"


def alive(mark: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("how", ["os.setsid()", "os.setsid(); signal.signal(15, signal.SIG_IGN)", "os.setpgid(0, 0)"])
def test_22_case_no_daemon_outlives_it(how, ran) -> None:
    mark = f"daemon-{os.getpid()}-{len(how)}"
    text = f"""import os, signal, sys, time
if os.fork() == 0:
    {how}
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(99)', '{mark}'])
    os._exit(0)
time.sleep(0.3)
"""
    assert ran(text).ok
    assert not alive(mark)


def test_22_case_a_daemon_that_renews_its_time_by_forks_ends_with_its_time(ran) -> None:
    text = """import os, time
while True:
    if os.fork(): os._exit(0) if os.getpid() != 2 else time.sleep(99)
    t = time.process_time()
    while time.process_time() - t < 0.3: pass
"""
    began = time.monotonic()
    assert not ran(text, Limits(seconds=2.0, cpu_seconds=1.0)).ok
    assert time.monotonic() - began < 15.0


# -- how much -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif("bounded_processes" not in confinement(), reason="processes are not bounded for this user")
@pytest.mark.parametrize("what", ["os.fork() or time.sleep(9)", "Thread(target=time.sleep, args=(9,)).start()"])
def test_22_case_a_thousand_processes_are_not_started(what, ran) -> None:
    text = "import os, time\nfrom threading import Thread\nn = 0\ntry:\n"
    text += f"    while n < 1000:\n        {what}; n += 1\nexcept (OSError, RuntimeError): pass\n"
    result = ran(text + "print('started', n, flush=True); os._exit(0)", Limits(seconds=20.0, processes=32))
    counts = [int(line.split()[1]) for line in result.output.splitlines() if line.startswith("started")]
    assert counts
    assert max(counts) < 32


def test_22_case_a_bounded_number_of_files(ran) -> None:
    text = (
        "n = 0\ntry:\n    while n < 20000: open(f'f{n}', 'w').close(); n += 1\nexcept OSError as e: print(n, e.errno)"
    )
    number, error = ran(text).output.split()
    assert int(number) < 5000
    assert int(error) == 28


def test_22_case_a_bounded_amount_of_disk(ran) -> None:
    text = "n = 0\ntry:\n    while n < 200:\n        open(f'f{n}', 'wb').write(bytes(10 << 20)); n += 1\n"
    text += "except OSError as e: print(n, e.errno)"
    number, error = ran(text, Limits(seconds=20.0, disk_bytes=64 << 20)).output.split()
    assert int(number) <= 6
    assert int(error) == 28


def test_22_files_with_holes_fill_no_disk_when_they_are_kept(ran, tmp_path) -> None:
    text = "for n in range(40):\n    with open(f'f{n:02d}', 'wb') as f: f.truncate(60 << 20)\n"
    result = ran(text, Limits(seconds=20.0, disk_bytes=128 << 20), keep=tmp_path / "kept")
    assert result.ok, result.reason
    assert len(result.files) == 40
    assert sum(p.stat().st_size for p in (tmp_path / "kept").iterdir()) <= 128 << 20


def test_22_case_memory_of_many_processes_is_bounded(ran) -> None:
    text = """import os, time
for _ in range(6):
    if os.fork() == 0:
        x = b'x' * (100 << 20); time.sleep(30)
time.sleep(30)
"""
    began = time.monotonic()
    result = ran(text, Limits(seconds=25.0, memory_bytes=300 << 20))
    assert result.reason == "its processes used more than 300 MiB of memory together"
    assert time.monotonic() - began < 20.0


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", "/etc/hostname", "/sys/class/net", "/dev/sda", "/dev/kmsg", "/dev/mem",
             "/run", "/var/log", "/home", os.path.expanduser("~/.ssh"), os.path.expanduser("~/.bashrc"), __file__],
)  # fmt: skip
def test_22_case_nothing_of_the_user_or_system_is_read(path, ran) -> None:
    text = f"import os\np = {path!r}\nprint(os.listdir(p) if os.path.isdir(p) else open(p, 'rb').read(99))"
    assert not ran(text).ok


@pytest.mark.parametrize(
    "call",
    ["os.chmod(p, 0o777)", "os.utime(p, (0, 0))", "os.setxattr(p, 'user.a', b'x')", "os.chown(p, 0, 0)",
     "os.unlink(p)", "open(p, 'a').write('x')", "os.rename(p, p + '2')", "os.truncate(p, 0)",
     "os.link(p, '/script/l')"],
)  # fmt: skip
def test_22_case_nothing_outside_is_changed(call, ran, tmp_path) -> None:
    """Neither a file of the run's user, nor one of Python that the script sees."""
    victim = tmp_path / "victim.txt"
    victim.write_text("here")
    before = os.stat(victim), os.stat(os.__file__)
    for path in (str(victim), os.__file__):
        assert not ran(f"import os\np = {path!r}\n{call}").ok
    after = os.stat(victim), os.stat(os.__file__)
    for one, other in zip(before, after, strict=True):
        assert (one.st_mode, one.st_mtime, one.st_size, one.st_uid) == (
            other.st_mode, other.st_mtime, other.st_size, other.st_uid,
        )  # fmt: skip
    assert victim.read_text() == "here"


def test_22_case_a_nest_of_folders_ends_nothing(ran) -> None:
    text = "import os\nfor i in range(3000):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    ran(text)
    assert ran("print('well')").output == "well\n"


def test_22_its_temporary_folder_is_gone_if_its_parent_is_killed(tmp_path) -> None:
    (tmp_path / "s.py").write_text("import time\nprint('x', flush=True)\ntime.sleep(60)\n")
    text = "from pathlib import Path\nfrom servetwin.real.tools.sandbox import *\n"
    text += f"run_script(Path({str(tmp_path / 's.py')!r}), Limits(seconds=60.0))"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    mark = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, "-c", text], env=mark)
    end = time.monotonic() + 30
    while not any(p.read_bytes() for p in temporary.glob("*/output")):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait()
    while list(temporary.iterdir()) or alive(str(temporary)):
        assert time.monotonic() < end + 10
        time.sleep(0.05)


# -- sockets, calls, words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AF_UNIX", "AF_VSOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG"])
def test_22_case_only_sockets_of_the_internet(kind, ran) -> None:
    assert "PermissionError" in ran(f"import socket\nsocket.socket(socket.{kind}, socket.SOCK_RAW)").reason


@pytest.mark.parametrize("target", ["127.0.0.1", "10.0.0.1", "1.1.1.1"])
def test_22_case_no_network(target, ran) -> None:
    assert "unreachable" in ran(f"import socket\nsocket.create_connection(({target!r}, 53), timeout=2)").reason


CALL = "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nprint(l.syscall({}, 0, 0, 0, 0), ctypes.get_errno())"

#: x86-64's numbers; on other machines these are other calls, which are not tried.
CALLS = {
    "io_uring_setup": 425, "add_key": 248, "keyctl": 250, "unshare": 272, "mount": 165, "ptrace": 101, "bpf": 321,
    "setns": 308, "userfaultfd": 323, "perf_event_open": 298, "chroot": 161, "open_by_handle_at": 304,
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
@pytest.mark.parametrize("name", CALLS)
def test_22_case_calls_that_a_script_has_no_use_for(name, ran) -> None:
    assert ran(CALL.format(f"{CALLS[name]}, 0")).output == "-1 1\n"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
def test_22_no_namespace_by_clone(ran) -> None:
    assert ran(CALL.format("56, 0x10000000 | 17")).output == "-1 1\n"
    assert ran(CALL.format("435, 0")).output == "-1 38\n"


def test_22_case_no_word_to_the_terminal(ran) -> None:
    reason = ran("raise SystemExit('\\x1b]0;title\\x07\\x1b[31mred\\u202e')").reason
    assert reason.isprintable()
    assert "\x1b" not in reason


def test_22_no_rights_are_left(ran) -> None:
    text = "print([l.split()[1] for l in open('/proc/self/status') if l[:3] == 'Cap' and l[3:6] != 'Bnd'])\n"
    text += "print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('NoNewPrivs', 'Seccomp:'))])"
    assert ran(text).output == f"{['0' * 16] * 4}\n['1', '2']\n"


def test_22_usual_scripts_still_run(ran, tmp_path) -> None:
    """Processes, threads, temporary files, shared memory, arrays."""
    text = """import concurrent.futures, multiprocessing, subprocess, tempfile, threading, os
import numpy as np
t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()
print(subprocess.run(['/bin/echo', 'echo'], capture_output=True, text=True).stdout.strip())
with tempfile.NamedTemporaryFile('w') as f: f.write('x')
with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as pool:
    print(sum(pool.map(abs, [-1, -2, -3])))
np.save('a.npy', np.arange(5)); print(np.load('a.npy').sum(), os.getcwd())
"""
    result = ran(text, keep=tmp_path / "kept")
    assert result.output.splitlines() == ["thread", "echo", "6", "10 /script"], result
    assert (tmp_path / "kept/a.npy").stat().st_size > 0
