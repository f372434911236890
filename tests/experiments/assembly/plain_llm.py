"""An LLM engine under vLLM 0.5.4's policy and NeuStream's, as one plain loop over steps.

Written from the description of the NeuStream artifact alone, to hold the simulator to: it shares nothing with it but
the latency model and the requests. Everything is counted anew at each step, so it is slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from servetwin.profiles import TokenTable

BLOCK, SEQUENCES, TOKENS = 16, 256, 8192
WATERMARK = 0.01
LENIENT_STEPS = 30


@dataclass(eq=False)
class Plain:
    """A request: prompt and output in tokens, *computed* those whose keys and values stand."""

    number: int
    sent: float
    prompt: int
    output: int
    arrival: float = 0.0
    computed: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.prompt + len(self.times)


@dataclass
class Deadlines:
    """P, D and what prefill and decoding take alone."""

    prefill: float
    decode: float
    table: TokenTable

    def __post_init__(self) -> None:
        self.d0, self.d1 = self.table.solo_decode()

    def of(self, r: Plain, token: int) -> float:
        k, n = token - 1, r.prompt
        alone = self.d0 * k + self.d1 * (k * n + k * (k + 1) / 2)
        return r.arrival + self.prefill * self.table.prefill(n) + self.decode * alone


def offset(seconds: float) -> float:
    return 0.004 if seconds >= 0.055 else 0.003 if seconds >= 0.05 else 0.002 if seconds >= 0.045 else 0.0


class Engine:
    """*truth* is what steps take, *plans* what the policy goes by. *quirks*: "queue" cost and "offset"."""

    def __init__(
        self,
        requests: list[Plain],
        truth: TokenTable,
        plans: TokenTable,
        blocks: int,
        slo: Deadlines | None = None,
        b0: float | None = None,
        quirks: tuple[str, ...] = (),
    ) -> None:
        self.coming = requests
        self.truth, self.plans, self.slo, self.quirks = truth, plans, slo, quirks
        self.free = self.blocks = blocks
        self.waiting: list[Plain] = []
        self.running: list[Plain] = []
        self.done: list[Plain] = []
        self.dropped: list[Plain] = []
        self.now = 0.0
        self.preemptions = 0
        self.b0 = b0 or (1.1 * slo.d0 if slo else 0.0)
        self.last = self.b0

    def run(self) -> Engine:
        sent = 0
        while sent < len(self.coming) or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now = max(self.now, self.coming[sent].sent)
            while sent < len(self.coming) and self.coming[sent].sent <= self.now:
                self.coming[sent].arrival = self.now  # stamped when the engine next looks
                self.waiting.append(self.coming[sent])
                sent += 1
            if not self.prefill(self.chosen()):
                self.decode()
            for r in [r for r in self.running if len(r.times) == r.output]:
                self.running.remove(r)
                self.release(r)
                self.done.append(r)
        return self

    # -- steps --

    def prefill(self, chosen: list[Plain]) -> bool:
        batch: list[Plain] = []
        for r in chosen:
            need = -(-r.length // BLOCK)
            if (
                sum(x.length for x in batch) + r.length > TOKENS
                or len(self.running) + len(batch) >= SEQUENCES
                or self.free - need < int(WATERMARK * self.blocks)
            ):
                break
            self.free -= need
            batch.append(r)
        if not batch:
            return False
        self.now += self.truth.prefill(sum(r.length for r in batch), sum(r.length**2 for r in batch))
        for r in batch:
            self.waiting.remove(r)
            self.running.append(r)
            r.computed = r.length
            r.times.append(self.now)
        return True

    def decode(self) -> None:
        at = 0
        while at < len(self.running):
            r = self.running[at]
            while self.free < 1 and self.running[-1] is not r:
                self.preempt(self.running[-1])
            if self.free < 1:
                self.preempt(r)
                break
            self.free -= r.computed % BLOCK == 0
            at += 1
        if self.running:
            began = self.now
            self.now += self.truth.decode(len(self.running), sum(r.computed for r in self.running))
            self.last = self.now - began
            for r in self.running:
                r.computed += 1
                r.times.append(self.now)

    def preempt(self, r: Plain) -> None:
        self.running.remove(r)
        self.release(r)
        self.waiting.insert(0, r)
        self.preemptions += 1

    def release(self, r: Plain) -> None:
        self.free += -(-r.computed // BLOCK)
        r.computed = 0

    # -- decisions --

    def chosen(self) -> list[Plain]:
        """What to prefill, in order."""
        slo = self.slo
        if slo is None or not self.waiting or not self.running:
            return list(self.waiting)
        beta = slo.decode * self.b0 - self.last

        def lenience(r: Plain) -> float:
            return max(0, LENIENT_STEPS - len(r.times)) * beta

        for r in list(self.waiting):
            if slo.of(r, 1) + lenience(r) - self.now < self.plans.prefill(r.prompt):
                self.waiting.remove(r)
                self.dropped.append(r)
        queue = list(self.waiting)
        self.waiting.sort(key=lambda r: r.prompt)
        slacks = [slo.of(r, len(r.times) + 1) + lenience(r) - self.now for r in self.running]
        best, low, high = 0, 0, len(queue)
        while low <= high and (m := (low + high + 1) // 2):
            priced = (queue if "queue" in self.quirks else self.waiting)[:m]
            took = self.plans.prefill(sum(r.prompt for r in priced), sum(r.prompt**2 for r in priced))
            context = sum(r.computed for r in self.running) + sum(r.prompt for r in self.waiting[:m])
            step = self.plans.decode(len(self.running) + m, context)
            took += step + (offset(step) if "offset" in self.quirks else 0.0)
            candidates = [slo.of(r, 2) + lenience(r) - self.now for r in self.waiting[:m]]
            if min(slacks + candidates) >= took:
                best, low = max(best, m), m + 1
            else:
                high = m - 1
        return self.waiting[:best]


def serve(
    experiment_requests: list[Any], truth: TokenTable, plans: TokenTable, blocks: int, **options: Any
) -> Engine:
    """Run the requests of an experiment whose LLM module is called llm."""
    plain = [Plain(r.id, r.arrival, r.tokens["llm"][0], r.outputs["llm"]) for r in experiment_requests]
    return Engine(plain, truth, plans, blocks, **options).run()
