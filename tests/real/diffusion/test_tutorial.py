"""Pages about real execution work as they stand, with the tiny models on the CPU that they name:
docs/tutorials/validate-on-your-gpu.md, and what docs/guides/real-execution.md says to do without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "tutorials" / "validate-on-your-gpu.md"
GUIDE = DOCS / "guides" / "real-execution.md"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


def typed(script: str, folder: Path) -> str:
    """What *script* prints, run in *folder* as a user would."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "SERVETWIN_CACHE": str(folder / "cache")}
    command = ["bash", "-c", f"set -eu\n{script}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_step_of_the_tutorial(tmp_path):
    install, *steps = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "pip install" in install
    printed = typed("\n".join(steps), tmp_path)
    for told in ("verdict: ", "client late by", "A / table", "noise: deviation", "same winner in", "ui.perfetto.dev"):
        assert told in printed
    assert "8 rows in scored.csv" in printed
    for made in ("mine.yaml", "runs/real/summary.json", "runs/simulated/summary.json", "scored.csv", "trace.json"):
        assert (tmp_path / made).exists()
    assert len(list((tmp_path / "runs" / "grid").glob("*/summary.json"))) == 8


def test_the_guide_without_a_gpu(tmp_path):
    (block,) = re.findall(
        r"^```sh\n(servetwin profile tiny-dit .*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL
    )
    typed(block, tmp_path)
    assert (tmp_path / "runs" / "tiny" / "real.json").exists()
