"""Case 22: workers of real runs that are stopped or whose run is killed, with real processes and real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servetwin.core.processes import stopped

REAL = [
    *("run", "tiny-dit-cpu", "--backend", "real", "--device", "cpu", "--any-device", "--processes"),
    *("--requests", "3000", "--rate", "60", "--policy", "fcfs"),
    *("--set", "workload.steps.dit.low=200", "--set", "workload.steps.dit.high=400"),
]
#: Seconds for which a worker may be stopped in these tests.
SHORT = 2.0
COMMAND = f"""
from servetwin.core.processes import stopped
stopped.LONGEST = {SHORT}
from servetwin.experiments.cli import entry
entry.main()
"""


class Run:
    """A real run in processes, as a user starts it, but that stopped workers are given up sooner."""

    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "tmp").mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(here / "tmp"), "TEST_MARK": str(here)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *REAL, "--out", str(here / "run")],
            env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def others(self) -> dict[int, str]:
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.here).encode() in (place / "environ").read_bytes():
                    found[int(place.name)] = (place / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
        return {n: state for n, state in found.items() if n != self.process.pid and state not in "ZX"}

    def until_it_serves(self) -> None:
        end = time.monotonic() + 120
        requests = self.here / "run/requests.jsonl"
        while not (requests.exists() and requests.stat().st_size):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)

    def workers(self) -> list[int]:
        """The processes that were forked from the fork server, which is a child of the run."""
        parent = {n: int(Path(f"/proc/{n}/stat").read_text().rpartition(")")[2].split()[1]) for n in self.others()}
        return [n for n, above in parent.items() if above in parent]

    def folders(self) -> list[str]:
        """What is left in the temporary folder, but torch's cache of compiled code, which is there to stay."""
        return [p.name for p in (self.here / "tmp").iterdir() if not p.name.startswith("torchinductor")]

    def busiest(self) -> int:
        """The worker of the loop, which computes nearly all the time."""

        def ticks(number: int) -> int:
            return sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]))

        return max(self.workers(), key=ticks)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    for number in (*run.others(), run.process.pid):
        if run.process.poll() is None or number != run.process.pid:
            os.kill(number, signal.SIGKILL)
    run.process.wait()
    run.process.stderr.close()


def test_22_case_a_worker_that_is_stopped_ends_the_run_in_a_line(run) -> None:
    run.until_it_serves()
    worker = run.busiest()
    os.kill(worker, signal.SIGSTOP)
    _, said = run.process.communicate(timeout=SHORT + 30)
    assert run.process.returncode == 1, said
    line = said.splitlines()[-1]
    assert "the process of worker dit has been stopped for 2 s" in line, said
    assert (run.here / "run/requests.jsonl").stat().st_size
    assert not run.others()


def test_22_a_worker_that_goes_on_in_time_is_waited_for(run) -> None:
    run.until_it_serves()
    worker = run.busiest()
    for _ in range(3):
        os.kill(worker, signal.SIGSTOP)
        time.sleep(SHORT / 2)
        os.kill(worker, signal.SIGCONT)
        time.sleep(1.5)
    assert run.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("before", [None, signal.SIGSTOP])
def test_22_case_a_run_that_is_killed_leaves_no_worker_and_no_folder(run, number, before) -> None:
    run.until_it_serves()
    if before is not None:
        for worker in run.workers():
            os.kill(worker, before)
    os.kill(run.process.pid, number)
    run.process.communicate(timeout=20)
    end = time.monotonic() + 10
    while run.others() or run.folders():
        assert time.monotonic() < end, (run.others(), run.folders())
        time.sleep(0.1)


def test_how_long_a_worker_may_be_stopped() -> None:
    assert stopped.LONGEST > 5 * SHORT
    assert not stopped.is_stopped(os.getpid())
    assert not stopped.is_stopped(2**22 + 1)
