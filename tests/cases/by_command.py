"""What a user does: the command line, run in this process, with a cache of its own."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from servetwin.experiments.cli import entry


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``servetwin ARGUMENTS``. A traceback is the test's error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.argv", ["servetwin", *map(str, arguments)])
        code = entry._run()
    return code, out.getvalue(), err.getvalue()


def refused(*arguments: object, says: tuple[str, ...] = (), out: bool = False) -> str:
    """The one line by which the command refuses; it *says* these words, and nothing came out before it."""
    code, told, line = call(*arguments)
    assert code == 2, (code, told, line)
    assert out or told == ""
    assert line.count("\n") == 1, line
    for word in says:
        assert word in line, line
    return line


def summary(*arguments: object) -> dict[str, Any]:
    """The summary that a run prints with ``--json``."""
    code, out, err = call("run", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def records(*arguments: object, out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Requests and batches of a run that leaves its records in *out*."""
    code, _, err = call("run", *arguments, "--out", out)
    assert code == 0, err
    lines = [(out / f"{name}.jsonl").read_text().splitlines() for name in ("requests", "batches")]
    return [json.loads(line) for line in lines[0]], [json.loads(line) for line in lines[1]]


def served_by(requests: list[dict[str, Any]], stage: str) -> Counter[str]:
    """How many requests each worker of a stage had."""
    return Counter(stay["worker"] for r in requests for stay in r["stages"] if stay["stage"] == stage)


def sets(**values: object) -> list[str]:
    """``--set`` for each of *values*, whose names have __ for a dot."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={_yaml(value)}")]


def _yaml(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


#: A language model in closed form: a prompt of n tokens takes 10 ms and 0.1 ms a token, a decode step 20 ms.
TOY_PROFILE = """
schema_version: 1
name: toy/llm
description: closed form
device: {name: none, kind: gpu, memory_gib: 24.0}
model: toy
precision: none
batch_counts: tokens
measured_when: never
origin: {repository: made up}
limits_of_data: every number is made up
tokens:
  architecture: llama-2-7b
  engine: {name: none, max_batched_tokens: 4096, max_sequences: 64, max_model_len: 4096, gpu_memory_utilization: 0.9}
  kv: {blocks: 1000, statistic: made up}
  step_includes: nothing, it is made up
  kinds:
    measured: &m
      prefill:
        tokens: [1, 4096]
        between: line
        seconds: [[0.0101, 0.4196]]
        statistic: made up
        source: {file: made up}
      line: {d0: 0.020, d1: 0.0, until_batch: 64, until_context: 65536, statistic: made up, source: {file: made up}}
    scheduler: *m
"""

TOY = """
name: toy
pipeline: {modules: {llm: {kind: llm}}}
workload:
  requests: null
  arrivals: {process: trace, file: t.csv}
  lengths: {llm: {prompt: {draw: trace}, output: {draw: trace}, limit: 2048}}
slo: {limits: {ttft_ms: 500, tpot_ms: 80}}
policy: {name: vllm}
deployment:
  devices: {gpu0: toy.yaml}
  workers:
    - {modules: [llm], device: gpu0, limit: 64, engine: {}}
time: {table: measured, noise: false}
"""


def toy(folder: Path, rows: list[tuple[float, int, int]]) -> Path:
    """The toy's experiment in *folder*, for requests of (arrival, prompt, output)."""
    (folder / "toy.yaml").write_text(TOY_PROFILE)
    lines = ["arrival,input_tokens,tokens", *(f"{a!r},{p},{o}" for a, p, o in rows)]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    (folder / "llm.yaml").write_text(TOY)
    return folder / "llm.yaml"


#: A loop of one module in closed form: 10 ms an iteration, for every batch.
STEPS = """
name: steps
pipeline: {modules: {loop: {loop: true}}}
workload:
  requests: null
  arrivals: {process: trace, file: s.csv}
  steps: {loop: {draw: trace}}
slo: {seconds: 60.0}
policy: {name: edf}
deployment:
  devices: {gpu0: steps.csv}
  workers:
    - {modules: [loop], device: gpu0, limit: 8}
time: {noise: false}
"""


def steps(folder: Path, rows: list[tuple[float, int]], seconds: float = 0.01, grows: bool = False) -> Path:
    """The loop's experiment in *folder*, for requests of (arrival, iterations); it *grows*: batches bring nothing."""
    table = "".join(f"loop,{n},{seconds * (n if grows else 1)!r}\n" for n in range(1, 9))
    (folder / "steps.csv").write_text(f"module,batch,seconds\n{table}")
    (folder / "s.csv").write_text("arrival,steps\n" + "".join(f"{a!r},{n}\n" for a, n in rows))
    (folder / "steps.yaml").write_text(STEPS)
    return folder / "steps.yaml"
