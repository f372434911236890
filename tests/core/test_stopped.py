"""A process that is stopped for long is given up; one that was heard of in between was not stopped all the time."""

import os
import signal
import subprocess
import sys
import time

import pytest
from servetwin.core.processes import stopped


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells which processes are stopped")
def test_time_before_it_was_heard_of_does_not_count(monkeypatch):
    monkeypatch.setattr(stopped, "LONGEST", 0.2)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            os.kill(process.pid, signal.SIGSTOP)
            while not stopped.is_stopped(process.pid):
                time.sleep(0.01)
            watch = stopped.StopWatch(process.pid)
            assert not watch.too_long()
            time.sleep(0.3)
            watch.heard()
            assert not watch.too_long()
            time.sleep(0.3)
            assert watch.too_long()
        finally:
            process.kill()
