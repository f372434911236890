"""Closed loops: a client that keeps so many requests in flight, in simulation, beside what others measured.

``measured/h100/closed-loop-qwen3-32b.csv`` holds runs of Qwen3-32B under vLLM 0.12 on H100s that are published with
aiconfigurator: mean time to first token and per token by devices, concurrency and lengths. `scored` repeats them by
the profiles that are made of aiconfigurator's tables, and nothing is fitted to them; ``python -m
servetwin.experiments.validation.replay.closed_loop`` prints what comes of it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.core import Module, Pipeline, Recorder, Request, ServingLoop
from servetwin.core.llm import EngineLimits, TokenRequest, TokenTask, TokenView
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.profiles import load

from ...assembly.llm_workers import host_ahead
from ...registry import policy_registry
from ...registry.catalog import MEASURED

RUNS = MEASURED / "h100" / "closed-loop-qwen3-32b.csv"
#: Requests are sent so many times as many as are in flight; the first two of these rounds and the last do not count.
ROUNDS, FIRST = 6, 2


@dataclass(frozen=True)
class Loop:
    """A measured run: seconds by request and token."""

    devices: int
    in_flight: int
    prompt: int
    output: int
    ttft: float
    tpot: float

    @property
    def profile(self) -> str:
        return f"h100/qwen3-32b-tp{self.devices}-imported"


def read(path: Path = RUNS) -> list[Loop]:
    """The measured runs."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Loop(
            devices=int(row["devices"]),
            in_flight=int(row["in_flight"]),
            prompt=int(row["prompt"]),
            output=int(row["output"]),
            ttft=float(row["ttft_ms"]) / 1e3,
            tpot=float(row["tpot_ms"]) / 1e3,
        )
        for row in rows
    ]


class _Client(Recorder):
    """Sends the next request as soon as one has ended."""

    wants_token_times = True

    def __init__(self, run: Loop) -> None:
        super().__init__()
        self.run, self.sent = run, 0
        self.rows: list[tuple[float, float, float]] = []
        self.loop: Any = None

    def send(self, now: float) -> None:
        run = self.run
        if self.sent < ROUNDS * run.in_flight:
            request = TokenRequest(self.sent, now, {"decode": (run.prompt, run.output)}, {"decode": run.output})
            self.sent += 1
            self.loop.executor.call_at(now, lambda: self.loop.arrive(request))

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        (task,) = request.tasks
        if isinstance(task, TokenTask) and task.first_token is not None:
            self.rows.append((request.arrival, task.first_token, now))
        self.send(now)


def simulate(run: Loop) -> tuple[float, float]:
    """Mean time to first token and per token, in seconds, of *run* repeated under vLLM's own policy."""
    from servetwin.sim import SimExecutor
    from servetwin.sim.llm.lane import TokenTiming

    profile = load(run.profile)
    table, data = profile.tokens("measured", hold=True), profile.token_data
    limits = EngineLimits(
        blocks=data.kv.blocks,
        max_batched_tokens=data.engine.max_batched_tokens,
        max_sequences=data.engine.max_sequences,
        whole_prompt=True,
    )
    stage = Pipeline.chain(Module("decode", loop=True)).stages([["decode"]])[0]
    policy: Any = policy_registry.make("vllm-v1", {})
    view = TokenView(
        stage,
        limits,
        estimate_prefill=table.prefill,
        estimate_decode=table.decode,
        estimate_step=table.step,
        name=run.profile,
    )
    executor = SimExecutor(lambda _: TokenTiming(table))
    client = _Client(run)
    client.loop = ServingLoop([stage], [TokenWorker(stage, policy, view, host=host_ahead(profile))], executor, client)
    for _ in range(run.in_flight):
        client.send(0.0)
    executor.run_until_idle()
    counted = sorted(client.rows)[FIRST * run.in_flight : -run.in_flight]
    sent, first, last = (np.array(column) for column in zip(*counted, strict=True))
    return float(np.mean(first - sent)), float(np.mean(last - first)) / max(run.output - 1, 1)


def scored(runs: list[Loop]) -> Iterator[tuple[Loop, float, float]]:
    """Of each run by how much simulated ttft and tpot are off, as shares."""
    for run in runs:
        ttft, tpot = simulate(run)
        yield run, ttft / run.ttft - 1.0, tpot / run.tpot - 1.0


def told(found: list[tuple[Loop, float, float]]) -> dict[str, tuple[float, float, float]]:
    """Of ttft and tpot, in percent: the median of what they are off by with its sign, without it, and its 90th
    percentile."""
    off = 100.0 * np.array([row[1:] for row in found])
    return {
        name: (float(np.median(x)), float(np.median(abs(x))), float(np.percentile(abs(x), 90)))
        for name, x in (("ttft", off[:, 0]), ("tpot", off[:, 1]))
    }


if __name__ == "__main__":
    for name, (signed, size, tail) in told(list(scored(read()))).items():
        sys.stdout.write(
            f"{name}: {signed:+.1f} % in the median, {size:.1f} % without its sign, {tail:.1f} % at p90\n"
        )
