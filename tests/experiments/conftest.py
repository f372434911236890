"""Where the raw artifact data lies, and a toy experiment that no calibration of ours can move."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from servetwin.experiments.cli import entry

WHERE = Path(os.environ.get("SERVETWIN_REFERENCE", Path(__file__).parents[3] / "shared/reference/neustream-ae"))

#: One request takes 10 ms in encode, 10 ms per step in the loop.
PROFILE = """
schema_version: 1
name: mine/toy
description: a toy model
device: {name: some GPU, kind: gpu}
model: toy
precision: fp32
image: [64, 64]
batch_counts: requests
measured_when: today
origin: {repository: here}
modules:
  encode:
    tables:
      scheduler: {batch: [1, 8], seconds: [0.010, 0.017], statistic: mean, source: {file: bench.py}}
  denoise:
    loop: true
    tables:
      scheduler:
        {batch: [1, 2, 4, 8], seconds: [0.010, 0.011, 0.014, 0.020], statistic: mean, source: {file: bench.py}}
costs:
  encode.device_beside.denoise: &free
    {meaning: they do not disturb each other, unit: ratio, modules: [encode, denoise], value: 1.0, how: made up,
     source: {file: bench.py}}
  denoise.device_beside.encode: *free
"""

EXPERIMENT = """
name: toy
pipeline:
  modules:
    encode: {}
    denoise: {loop: true}
workload:
  requests: 60
  arrivals: {process: gamma, rate: 4.0, cv: 2.0}
  steps:
    denoise: {draw: uniform, low: 20, high: 30}
slo: {factor: 3.0}
policy: {name: edf}
deployment:
  devices: {gpu0: profile.yaml}
  workers:
    - {modules: [encode], device: gpu0, limit: 8}
    - {modules: [denoise], device: gpu0, limit: 8}
deployments:
  whole:
    workers:
      - {modules: [encode, denoise], device: gpu0, limit: 8}
"""


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the NeuStream artifact's data, or skip."""
    if not (WHERE / "diffusion").is_dir():
        pytest.skip("no reference data: set SERVETWIN_REFERENCE to the folder that holds diffusion/")
    return WHERE


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds the points of another."""
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The file of the toy experiment; its profile lies beside it."""
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "toy.yaml").write_text(EXPERIMENT)
    return tmp_path / "toy.yaml"


@pytest.fixture
def servetwin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["servetwin", *map(str, arguments)])
        code = entry._run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
