"""The scenarios that a policy is tried on: small, and each hard in another way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from ..llm.policy import TokenPolicy
from ..pipeline import StepActions
from .jobs import Job, Prompt


@dataclass(frozen=True)
class Scenario:
    """Requests *given* to a *system* (arguments of `FakeWorker`, or of `FakeEngine` where it is one of *tokens*).

    *alone*: each of them could be served in time by any policy. *crowded*: it is worth being repeated in other ways.
    *stream*: others keep coming, so that one could wait for ever; for so many seconds of *patience* it may be put
    off, and until its deadline if it has one. *hurried*: giving up is no fault in it.
    """

    name: str
    given: Sequence[Any]
    system: dict[str, Any]
    tokens: bool = False
    alone: bool = False
    crowded: bool = False
    stream: bool = False
    hurried: bool = False
    patience: float = 0.0


def scenarios_for(kind: type, policy: Any) -> Iterator[Scenario]:
    """Those for policies of the class *kind*; *policy* is one of them."""
    yield from _engines(policy) if issubclass(kind, TokenPolicy) else _workers(policy)


def spread(count: int, least: int, most: int, seed: int) -> list[int]:
    """*count* whole numbers from *least* to *most* in no order that tells anything; always the same."""
    found, state = [], seed
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        found.append(least + (state >> 8) % (most - least + 1))
    return found


#: Seconds of an iteration by batch size: batches pay off.
TABLE = [0.03, 0.035, 0.041, 0.048, 0.056, 0.065, 0.075, 0.086]


def _workers(policy: Any) -> Iterator[Scenario]:
    base: dict[str, Any] = {"seconds": TABLE, "limit": 4, "slo_factor": 3.0}
    yield Scenario("one request, no deadline", [Job(10)], base, alone=True)
    yield Scenario("one request at a time, deadlines of ten times", _apart(), base, alone=True)
    steps = spread(40, 1, 12, 7)
    yield Scenario(
        "ten at once on a worker that takes three",
        [Job(n, slo=6.0 * TABLE[0] * n + 0.4) for n in steps[:10]],
        {**base, "limit": 3},
        crowded=True,
    )
    gaps = spread(40, 0, 30, 3)
    at, arrivals = 0.0, []
    for gap in gaps:
        at += 0.005 * gap
        arrivals.append(round(at, 3))
    mixed = [
        Job(n, at=when, slo=TABLE[0] * n * (2.0 + i % 3) + 0.02 * (i % 4))
        for i, (n, when) in enumerate(zip(steps, arrivals, strict=True))
    ]
    yield Scenario("a crowd, deadlines of two to four times", mixed, base, crowded=True)
    yield Scenario(
        "a crowd, two modules after this one",
        [Job(n, at=when, slo=TABLE[0] * n * 4.0 + 0.3) for n, when in zip(steps, arrivals, strict=True)],
        {**base, "then": {"upscale": 0.01, "decode": 0.02}},
    )
    yield Scenario(
        "no deadlines", [Job(n, at=when) for n, when in zip(steps, arrivals, strict=True)], base, crowded=True
    )
    slow = [Job(n, at=2 * when, slo=4.0) for n, when in zip(steps, arrivals, strict=True)]
    yield Scenario("batches of one", slow[:25], {**base, "limit": 1})
    yield Scenario(
        "all are late when they come", [Job(5, at=0.1 * i, slo=0.01) for i in range(8)], base, hurried=True
    )
    asked = spread(16, 5, 40, 13)
    many = [Job(n, at=0.3 * i, slo=TABLE[0] * n * (1.5 + i % 3) + 0.1) for i, n in enumerate(asked)]
    for told, reuse in (("and steps may be reused", True), ("and none may be reused", False)):
        actions = StepActions(((0.4, 0.7), (1.0, 1.0)), min_steps=10, reuse=reuse)
        yield Scenario(f"requests may get fewer steps, {told}", many, {**base, "actions": actions}, crowded=reuse)
    if policy.names_devices:
        for told, change in (("that may be changed", 0.004), ("that may not be changed", None)):
            group = {**base, "gpus": 8, "change": change}
            yield Scenario(f"a crowd on eight devices {told}", mixed, group, crowded=change is not None)
        yield Scenario("one request, eight devices", [Job(10)], {**base, "gpus": 8}, alone=True)
    for told, slo in (("without deadlines", inf), ("and a deadline that passes", 5.0)):
        shorts = [Job(4, at=0.1 * i, slo=slo) for i in range(1, 120)]
        name = f"a long request among short ones that keep coming, {told}"
        yield Scenario(
            name, [Job(60, at=0.4, slo=slo), *shorts], {**base, "seconds": [0.06, 0.07], "limit": 2}, stream=True
        )


def _apart() -> list[Job]:
    return [Job(n, at=2.0 * i, slo=10.0 * TABLE[0] * n) for i, n in enumerate((1, 5, 20))]


def _engines(policy: Any) -> Iterator[Scenario]:
    own = policy.tokens_a_step
    step = max(own or 512, 64)
    most = max(step - 64, 1)  # tokens of a prompt, so that it fits into a step also after it has put out some
    base: dict[str, Any] = {"blocks": 400, "block_size": 16, "max_batched_tokens": 2 * step if own else step}
    base["max_sequences"] = min(8, own or 8)
    base |= {"prefill": 0.0004, "decode": _decode, "slo": (6.0, 3.0)}
    loose = {**base, "slo": (1000.0, 1000.0)}

    def prompt(tokens: int, output: int, **more: Any) -> Prompt:
        limit = more.pop("limit", output + output // 2)
        return Prompt(min(tokens, most), output, limit, predicted=output, **more)

    yield Scenario("one prompt, hardly a deadline", [prompt(100, 8)], loose, tokens=True, alone=True)
    if not policy.whole_prompts and policy.chunks:
        long = Prompt(step + step // 2, 5, 8, predicted=5)
        yield Scenario("one prompt that is longer than a step", [long], loose, tokens=True, alone=True)
    lengths, outputs = spread(30, 10, 300, 5), spread(30, 1, 25, 11)
    gaps = spread(30, 0, 20, 9)
    at, arrivals = 0.0, []
    for gap in gaps:
        at += 0.01 * gap
        arrivals.append(round(at, 3))
    crowd = [prompt(n, out, at=when) for n, out, when in zip(lengths, outputs, arrivals, strict=True)]
    yield Scenario("a crowd", crowd, base, tokens=True, crowded=True)
    yield Scenario(
        "ten at once", [prompt(n, out) for n, out in zip(lengths[:10], outputs, strict=False)], base, tokens=True
    )
    yield Scenario("a crowd, hardly a deadline", crowd, loose, tokens=True, crowded=True)
    little = {**loose, "blocks": 45, "max_sequences": min(6, own or 6)}
    yield Scenario("a crowd and little memory", crowd, little, tokens=True, crowded=True)
    few = {**base, "max_sequences": min(2, own or 2)}
    yield Scenario("two at a time", crowd[:15], few, tokens=True)
    shorts = [prompt(200, 2, at=0.07 * i) for i in range(1, 120)]
    late = 6.0 * 0.0004 * step  # when the long prompt's first token is due
    for told, slo, patience in (("without deadlines", None, 0.0), ("and a deadline that passes", (6.0, 3.0), late)):
        name = f"a long prompt among short ones that keep coming, {told}"
        system = {**base, "slo": slo, "max_sequences": min(2, own or 2)}
        given = [prompt(step, 30, at=0.4), *shorts]
        yield Scenario(name, given, system, tokens=True, stream=True, patience=patience)


def _decode(batch: int, context: int) -> float:
    return 0.02 + 0.001 * batch + 1e-6 * context


__all__ = ["Scenario", "scenarios_for"]
