"""The LLM cases of ``make bench``: one engine in three styles, the policies and their decisions, long runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

from servetwin.core.llm import CumulativeSLO, Step, TokenPolicy, TokenTask, TokenView
from servetwin.policies.llm.edf_llm import EDFLLM
from servetwin.policies.llm.neustream_llm import NeuStreamLLM
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1

from ..assembly.build import build
from ..spec import loading
from ..spec.experiment import Experiment
from .measure import Cost, in_process, ratios, spread, turns
from .tokens import OPT, STYLES, Case, Line, Run

POLICIES: dict[str, type[TokenPolicy]] = {
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "sarathi": Sarathi,
    "edf-llm": EDFLLM,
    "neustream-llm": NeuStreamLLM,
}


def llm(rounds: int) -> None:
    """The styles, then an experiment file with and without columns, then the policies."""
    _styles(rounds)
    _experiment(rounds)
    _policies(rounds)


def _styles(rounds: int) -> None:
    """The same decisions in three styles, equal to the bit; the naive one is given a tenth of the requests."""
    print(f"\nan LLM engine (vLLM 0.5.4), 10000 requests of 512 + 128 tokens; CPU us a request, {rounds} rounds")
    print(f"{'load':>5} {'steps':>7} {'ServeTwin':>17} {'requests/s':>11} {'from objects':>17} {'naive SimPy':>20}"
          f" {'bare loop':>17} {'naive / ServeTwin':>20} {'ServeTwin / bare':>17} {'objects / bare':>17}"
          )  # fmt: skip
    for load in (0.25, 0.75, 0.95):
        case, few = Case(load=load), Case(1000, load=load)
        results = {name: style(few) for name, style in STYLES.items()}
        steps = {name: STYLES[name](case) for name in ("twin", "objects", "bare")}
        for found in (results, steps):
            if any(r.key != found["bare"].key for r in found.values()):
                raise SystemExit(f"at load {load} the styles differ")
        sizes = {"twin": case, "objects": case, "naive": few, "bare": case}
        costs = turns({n: partial(in_process, partial(style, sizes[n])) for n, style in STYLES.items()}, rounds)
        each = {n: [Cost(c.cpu / sizes[n].requests, c.wall) for c in costs[n]] for n in STYLES}
        columns = [spread([c.cpu for c in each[n]], 1e6) for n in STYLES]
        columns += [ratios(each[a], each[b]) for a, b in (("naive", "twin"), ("twin", "bare"), ("objects", "bare"))]
        columns.insert(1, f"{1 / statistics.median([c.cpu for c in each['twin']]):.0f}")
        widths = (17, 11, 17, 20, 17, 20, 17, 17)
        line = " ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
        print(f"{load:>5} {steps['twin'].steps:>7} {line}")


def _experiment(rounds: int) -> None:
    """What an experiment file costs, with all that is reported of it, by columns of numbers and by objects."""
    print(f"\nopt-13b-a6000 under vllm, 10000 requests of 300 tokens out; CPU us a request, {rounds} rounds")
    modes = {"numbers": True, "objects": False}
    for rate in (0.5, 1.0, 2.0):
        chosen = loading.load("opt-13b-a6000", [("policy", "vllm"), ("rate", rate), ("requests", 10_000)])

        def report(mode: str, chosen: Experiment = chosen) -> dict[str, Any]:
            return build(chosen).play(columns=modes[mode]).as_dict()

        found = {mode: report(mode) for mode in modes}
        if any(one != found["objects"] for one in found.values()):
            raise SystemExit(f"at rate {rate} the two differ")
        costs = turns({mode: partial(in_process, partial(report, mode)) for mode in modes}, rounds)
        each = {mode: [Cost(c.cpu / 10_000, c.wall) for c in costs[mode]] for mode in modes}
        columns = ", ".join(f"{mode} {spread([c.cpu for c in each[mode]], 1e6)}" for mode in modes)
        print(f"rate {rate:g}: {columns}; objects / numbers {ratios(each['objects'], each['numbers'])}")


class Timed(TokenPolicy):
    """*inner*, with the time that its decisions take."""

    def __init__(self, inner: TokenPolicy) -> None:
        self.inner = inner
        self.asked = 0
        self.took = 0.0

    def start(self, view: TokenView) -> None:
        self.inner.start(view)

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        return self.inner.admit(task, view, now)

    def decide(self, view: TokenView, now: float) -> Step:
        began = time.perf_counter()
        step = self.inner.decide(view, now)
        self.took += time.perf_counter() - began
        self.asked += 1
        return step


def _policies(rounds: int) -> None:
    """Each policy on the same arrivals; their decisions measured apart, in runs of their own."""
    case, times = Case(2000), OPT
    slo = CumulativeSLO(3.0, 1.5, times.decode, times.context, Line(times).prefill)
    print(f"\nthe policies, 2000 requests of 512 + 128 tokens at {case.rate:.2f}/s; {rounds} rounds")

    def once(make: type[TokenPolicy]) -> Cost:
        run = Run(case, make(), slo=slo)
        return in_process(run.play)

    costs = turns({name: partial(once, make) for name, make in POLICIES.items()}, rounds)
    for name, make in POLICIES.items():
        timed = [Timed(make()) for _ in range(rounds)]
        for policy in timed:
            run = Run(case, policy, slo=slo)
            run.play()
        decision = spread([p.took / p.asked for p in timed], 1e6)
        each = spread([c.cpu / case.requests for c in costs[name]], 1e6)
        print(f"{name:>14}: {each} us a request; {run.recorder.summary.finished} finished, {run.steps} steps,"
              f" {timed[0].asked} decisions of {decision} us (wall)")  # fmt: skip


def llm_long() -> None:
    """Up to a million requests: time in proportion, memory flat."""
    print("\nlong runs of an LLM engine: 512 + 128 tokens at load 0.75; a process each")
    for requests in (10_000, 100_000, 1_000_000):
        command = [sys.executable, "-m", "servetwin.experiments.bench.tokens", str(requests)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        each = 1e6 * found["cpu"] / requests
        print(f"{requests:>9} requests: {found['cpu']:.1f} CPU s, {each:.1f} us a request, {found['memory']:.0f} MiB")
    print("\nlong runs of chats with a prefix cache whose blocks are taken again all the time; a process each")
    for requests in (10_000, 100_000, 1_000_000):
        command = [sys.executable, "-m", "servetwin.experiments.bench.chat", str(requests)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        each = 1e6 * found["cpu"] / requests
        told = f"{found['memory']:.0f} MiB, {100 * found['hit_rate']:.1f} % found"
        print(f"{requests:>9} requests: {found['cpu']:.1f} CPU s, {each:.1f} us a request, {told}")
