"""What docs/guides/vllm.md says to do on a CPU works as it stands: a run in vLLM, its simulation, both compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "vllm.md"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


def test_a_run_beside_its_simulation(tmp_path):
    (block,) = re.findall(
        r"^```sh\n(servetwin run tiny-opt-cpu .*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = ["bash", "-c", f"set -eu\n{block}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "real" / "real.json").exists()
    assert "A: runs/sim" in done.stdout
    assert "B: runs/real" in done.stdout
