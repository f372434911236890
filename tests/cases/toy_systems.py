"""Systems small enough to work out by hand, and the command line in this process."""

from __future__ import annotations

import csv
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from servetwin.experiments.cli import entry

#: An engine whose prefill takes 10 ms and 0.1 ms a token, and whose decode step takes 20 ms whatever the batch.
LLM_PROFILE = """
schema_version: 1
name: toy/llm
description: "made up: prefill 10 ms and 0.1 ms a token, decode 20 ms"
device: {name: none, kind: gpu, memory_gib: 24.0}
model: toy
precision: none
batch_counts: tokens
measured_when: never
origin: {repository: made up}
tokens:
  architecture: llama-2-7b
  engine: {name: none, max_batched_tokens: 4096, max_sequences: 64, max_model_len: 4096, gpu_memory_utilization: 0.9}
  kv: {blocks: 1000, statistic: made up}
  step_includes: nothing, it is made up
  kinds:
    measured: &m
      prefill: {tokens: [1, 4096], between: line, seconds: [[0.0101, 0.4196]], statistic: made up, source: {file: x}}
      line: {d0: 0.020, d1: 0.0, until_batch: 64, until_context: 65536, statistic: made up, source: {file: x}}
    scheduler: *m
"""
LLM = """
name: toy
pipeline: {modules: {llm: {kind: llm}}}
workload:
  requests: null
  arrivals: {process: trace, file: t.csv}
  lengths: {llm: {prompt: {draw: trace}, output: {draw: trace}, limit: 2048}}
slo: {limits: {ttft_ms: 500, tpot_ms: 80}}
policy: {name: vllm}
deployment:
  devices: {gpu0: profile.yaml}
  workers: [{modules: [llm], device: gpu0, limit: 64, engine: {}}]
time: {table: measured, noise: false}
"""

#: A worker that serves one request at a time, each step in 10 ms: ten steps take 100 ms.
ONE_PROFILE = """
schema_version: 1
name: mine/one
description: one at a time
device: {name: some GPU, kind: gpu}
model: one
precision: fp32
image: [64, 64]
batch_counts: requests
measured_when: today
origin: {repository: here}
modules:
  denoise:
    loop: true
    tables:
      scheduler: {batch: [1, 2], seconds: [0.010, 0.020], statistic: mean, source: {file: bench.py}}
"""
ONE = """
name: one
pipeline: {modules: {denoise: {loop: true}}}
workload:
  requests: 200
  arrivals: {process: poisson, rate: 5.0}
  steps: {denoise: {draw: constant, steps: 10}}
slo: {seconds: 0.25}
policy: {name: fcfs}
deployment:
  devices: {gpu0: one.profile.yaml}
  workers: [{modules: [denoise], device: gpu0, limit: 1}]
"""


def write_llm(folder: Path) -> Path:
    (folder / "profile.yaml").write_text(LLM_PROFILE)
    (folder / "llm.yaml").write_text(LLM)
    return folder / "llm.yaml"


def write_one(folder: Path) -> Path:
    (folder / "one.profile.yaml").write_text(ONE_PROFILE)
    (folder / "one.yaml").write_text(ONE)
    return folder / "one.yaml"


def plain(path: Path, times: list[float], prompt: int = 100, output: int = 20) -> Path:
    path.write_text("arrival,input_tokens,tokens\n" + "".join(f"{t!r},{prompt},{output}\n" for t in times))
    return path


def servetwin(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["servetwin", *map(str, arguments)])
    with argv, redirect_stdout(out), redirect_stderr(err):
        code = entry._run()
    return code, out.getvalue(), err.getvalue()


def refused(*arguments: object) -> str:
    """The one line with which the command line refuses *arguments*."""
    code, _, err = servetwin(*arguments)
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that a command wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
