"""One LLM engine with all that a run is reported by: the policies that give a rule for all steps, from numbers and
from objects, on the same requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

from servetwin.core import Module, Pipeline, Recorder, ServingLoop
from servetwin.core.llm import EngineLimits, LimitsSLO, TokenLimits, TokenPolicy, TokenView
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.random_streams import stream
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from servetwin.sim import SimExecutor
from servetwin.sim.llm.columns import play
from servetwin.sim.llm.lane import TokenTiming
from servetwin.sim.llm.request_columns import TokenColumns

from .measure import in_process, ratios, spread, turns

POLICIES: dict[str, Callable[[], TokenPolicy]] = {"vllm": VLLM, "vllm-v1": VLLMV1, "sarathi": Sarathi}
REQUESTS, PROMPT, OUTPUT, RATE = 10_000, 512, 128, 12.0


class Steps:
    """5 ms a step, 0.04 ms for each token of a prompt, 0.05 ms for each request that decodes."""

    def prefill(self, tokens: int, squares: float | None = None) -> float:
        return 0.005 + 4e-5 * tokens

    def decode(self, batch: int, context: float) -> float:
        return 0.005 + 5e-5 * batch

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        return 0.005 + 4e-5 * tokens + 5e-5 * batch

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        return 0.005 + 5e-5 * batch, 0.0, float("inf")

    def between(self, sequences: int) -> float:
        return 0.0


def report(policy: str, columns: bool) -> dict[str, Any]:
    """The whole report of a run under *policy*: latencies, gaps, goodput, batch sizes."""
    steps, slo = Steps(), LimitsSLO.of(TokenLimits(ttft=0.2, tpot=0.02))
    (stage,) = Pipeline([Module("llm", loop=True)], []).stages([["llm"]])
    limits = EngineLimits(20_000, watermark=0.01, headroom=1)
    view = TokenView(stage, limits, estimate_prefill=steps.prefill, estimate_decode=steps.decode, slo=slo)
    recorder = Recorder()
    recorder.summary = TokenSummary({stage.name: slo})
    recorder.wants_token_times = True
    executor = SimExecutor(lambda _: TokenTiming(steps))
    loop = ServingLoop([stage], [TokenWorker(stage, POLICIES[policy](), view)], executor, recorder)
    arrivals = stream(0, "arrivals").exponential(1.0 / RATE, REQUESTS).cumsum()
    play(
        loop, executor, TokenColumns("llm", arrivals, repeat(PROMPT), repeat(OUTPUT), repeat(OUTPUT)), columns=columns
    )
    return recorder.summary.as_dict()


def reports(rounds: int) -> None:
    """CPU seconds of each policy, from numbers and from objects, equal in every number of the report."""
    print(f"\nan LLM engine with full reports: {REQUESTS} requests of {PROMPT} + {OUTPUT} tokens at {RATE:g}/s;"
          f" CPU ms, {rounds} rounds")  # fmt: skip
    cases = {(name, columns): partial(report, name, columns) for name in POLICIES for columns in (True, False)}
    for name in POLICIES:
        if cases[name, True]() != cases[name, False]():
            raise SystemExit(f"under {name} the two differ")
    costs = turns({f"{n} {c}": partial(in_process, case) for (n, c), case in cases.items()}, rounds)
    for name in POLICIES:
        numbers, objects = costs[f"{name} True"], costs[f"{name} False"]
        print(f"{name:>10}: numbers {spread([c.cpu for c in numbers], 1000)},"
              f" objects {spread([c.cpu for c in objects], 1000)}; objects / numbers {ratios(objects, numbers)}"
              )  # fmt: skip
