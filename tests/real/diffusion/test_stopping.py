"""SIGTERM (a batch system, the end of a container) ends a real run as Ctrl-C does: nothing that was live is lost."""

import os
import signal

import pytest
from harness_stop import outcomes, stop

REAL = ["run", "tiny-dit-cpu", "--backend", "real", "--device", "cpu", "--any-device", "--requests", "3000"]


@pytest.mark.parametrize(
    ("more", "group", "number"),
    [([], False, signal.SIGTERM), (["--processes"], True, signal.SIGTERM), ([], False, signal.SIGINT)],
)
def test_a_signal_leaves_the_records_of_a_run(tmp_path, monkeypatch, more, group, number):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    folder = tmp_path / "run"
    steps = ["--set", "workload.steps.dit.low=200", "--set", "workload.steps.dit.high=400", "--policy", "fcfs"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without
    try:
        code, said = stop(
            [*REAL, *more, *steps, "--rate", "60", "--out", str(folder)], folder, number=number, group=group
        )
    finally:
        signal.signal(signal.SIGINT, before)
    how = "terminated" if number == signal.SIGTERM else "interrupted"
    assert code == 128 + number, said
    assert said == f"servetwin: {how}; what was recorded is in {folder}\n"
    found = outcomes(folder)
    assert 0 < len(found) < 3000
    assert ("failed", how) in found
