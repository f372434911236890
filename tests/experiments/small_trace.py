"""A toy system and a plain trace for it."""

from __future__ import annotations

from pathlib import Path

PROFILE = """
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
EXPERIMENT = """
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


def plain(path: Path, times: list[float], prompt: int = 100, output: int = 20) -> Path:
    path.write_text("arrival,input_tokens,tokens\n" + "".join(f"{t!r},{prompt},{output}\n" for t in times))
    return path
