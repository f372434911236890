"""docs/tutorials/validate-on-your-gpu.md works as it stands, with the tiny model on the CPU that it names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "tutorials" / "validate-on-your-gpu.md"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


def test_every_step_of_the_tutorial(tmp_path):
    install, *steps = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "pip install" in install
    script = "set -eu\n" + "\n".join(steps)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "SERVETWIN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for told in ("verdict: ", "client late by", "A / table", "noise: deviation", "same winner in", "ui.perfetto.dev"):
        assert told in done.stdout
    assert "8 rows in scored.csv" in done.stdout
    for made in ("mine.yaml", "runs/real/summary.json", "runs/simulated/summary.json", "scored.csv", "trace.json"):
        assert (tmp_path / made).exists()
    assert len(list((tmp_path / "runs" / "grid").glob("*/summary.json"))) == 8
