"""Scripts really run, each in a process of its own, and cannot do what they must not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.real.tools import sandbox
from servetwin.real.tools.sandbox import REQUIRED, Limits, confinement, run_script

FREE = Limits(strict=False)


@pytest.fixture
def script(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "code.py").write_text(text)
        return tmp_path / "code.py"

    return write


needs = {
    name: pytest.mark.skipif(name not in confinement(), reason=f"this system does not enforce {name} for this user")
    for name in ("no_network", "writes_confined")
}


def test_a_script_runs_with_this_interpreters_packages_and_leaves_files(script, tmp_path: Path) -> None:
    code = "import numpy as np\nnp.save('plot.npy', np.arange(3))\nprint('done', __name__)"
    result = run_script(script(code), FREE, keep=tmp_path / "kept")
    assert (result.ok, result.output, result.files) == (True, "done __main__\n", ("plot.npy",))
    assert (tmp_path / "kept/plot.npy").stat().st_size > 0
    assert 0.0 < result.seconds < 10.0


def test_a_failed_script_says_why(script) -> None:
    assert run_script(script("1 / 0"), FREE).reason == "ZeroDivisionError: division by zero"
    assert run_script(script("raise SystemExit(3)"), FREE).reason == "ended with exit code 3"
    assert run_script(script("def f(:"), FREE).reason == "SyntaxError: invalid syntax"


def test_time_is_limited(script) -> None:
    began = time.monotonic()
    result = run_script(script("import time; time.sleep(60)"), Limits(seconds=0.5, strict=False))
    assert result.reason == "was not done after 0.5 s"
    assert time.monotonic() - began < 5.0
    busy = run_script(script("while True: pass"), Limits(seconds=20.0, cpu_seconds=1, strict=False))
    assert busy.reason in ("used up its processor time", "was killed by SIGKILL")


def running(*words: str) -> bool:
    """Whether a process with these words on its command line is alive."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes().split(b"\0")
            alive = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
        except OSError:
            continue
        if alive and all(word.encode() in said for word in words):
            return True
    return False


def test_what_it_started_ends_with_it(script, tmp_path: Path) -> None:
    seconds = f"60.{os.getpid()}"
    assert run_script(script(f"import subprocess\nsubprocess.Popen(['sleep', '{seconds}'])"), FREE).ok
    for _ in range(100):
        if not running("sleep", seconds):
            return
        time.sleep(0.02)
    pytest.fail("a process that the script started is still there")


def test_memory_is_limited(script) -> None:
    result = run_script(script("x = bytearray(1 << 30)"), Limits(memory_bytes=256 << 20, strict=False))
    assert result.reason == "MemoryError"


def test_files_are_limited(script) -> None:
    limits = Limits(file_bytes=1 << 20, strict=False)
    result = run_script(script("open('big', 'wb').write(bytes(8 << 20))"), limits)
    assert not result.ok
    assert "File too large" in result.reason or "too large a file" in result.reason


@needs["no_network"]
def test_there_is_no_network(script) -> None:
    code = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=2)"
    assert "Network is unreachable" in run_script(script(code)).reason


@needs["writes_confined"]
def test_nothing_is_written_outside_its_folder(script, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    result = run_script(script(f"open({str(outside)!r}, 'w').write('x')"))
    assert not result.ok
    assert not outside.exists()
    victim = tmp_path / "victim.txt"
    victim.write_text("here")
    assert not run_script(script(f"import os; os.unlink({str(victim)!r})")).ok
    assert victim.read_text() == "here"


def test_its_surroundings_are_empty(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    code = "import os, sys\nprint(sorted(k for k in os.environ if 'SECRET' in k), sys.stdin.read() == '')"
    assert run_script(script(code), FREE).output == "[] True\n"


def test_its_folder_is_gone_afterwards(script) -> None:
    folder = run_script(script("import os; print(os.getcwd())"), FREE).output.strip()
    assert not os.path.exists(folder)


def test_strict_refuses_where_the_system_cannot_confine(script, monkeypatch: pytest.MonkeyPatch) -> None:
    if set(REQUIRED) <= set(confinement()):
        assert run_script(script("")).ok
        monkeypatch.setattr(sandbox, "REQUIRED", (*REQUIRED, "a_moat"))
        result = run_script(script("print('ran')"))
        assert (result.reason, "ran" in result.output.splitlines()) == (
            "this system does not confine scripts as was asked: a_moat", False,
        )  # fmt: skip
    else:
        assert "does not confine" in run_script(script("")).reason


def test_no_script_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such script"):
        run_script(tmp_path / "none.py")
    with pytest.raises(BadInput, match="seconds is 0"):
        Limits(seconds=0)
