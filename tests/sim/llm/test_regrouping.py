"""Sequences that leave the batch of an engine for a step and come back cost its host time: by hand, and against
a count that remembers the members of each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from engines import Anything, Linear, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.llm.batch import Regrouped, TokenBatch
from servetwin.core.llm.serving.worker import Host
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1
from test_engine_invariants import SLO, rows, workloads

#: A prefill takes 1 s, a decode step 10 s.
EVEN = Linear(c0=1.0, c1=0.0, d0=10.0, d1=0.0)


@dataclass(frozen=True)
class Watching(Host):
    """Keeps the batches that are launched."""

    seen: list[TokenBatch] = field(default_factory=list)

    def launching(self, batch: TokenBatch) -> float:
        self.seen.append(batch)
        return super().launching(batch)


def watching(**costs: float) -> Watching:
    return Watching(lambda sequences: 0.0, 0.0, ahead=True, **costs)


def test_a_prompt_alone_puts_those_who_decode_out_of_the_batch_and_the_next_step_brings_them_back():
    host = watching(left=1e-3, back=1e-3)
    serve(VLLM(), requests((0.0, 4, 9), (0.0, 6, 9), (2.0, 5, 4)), times=EVEN, host=host)
    # Two prompts, two decode steps; the third prompt, and then all three, of whom the first two had left. They have
    # computed their prompts and two tokens each.
    assert [(len(b.prefill), b.decode, b.regrouped) for b in host.seen[:5]] == [
        (2, 0, None),
        (0, 2, None),
        (0, 2, None),
        (1, 0, Regrouped(left=2, back=0, tokens=0)),
        (0, 3, Regrouped(left=0, back=2, tokens=4 + 6 + 2 * 2)),
    ]


def test_where_prompts_are_mixed_with_decodes_nobody_leaves():
    host = watching(left=1e-3, back=1e-3)
    serve(VLLMV1(), requests((0.0, 4, 9), (0.0, 6, 9), (2.0, 5, 4)), times=EVEN, host=host)
    assert {b.regrouped for b in host.seen} == {None}


def test_it_takes_the_host_time_where_the_device_waits_for_it():
    quick = Linear(c0=1.0, c1=0.0, d0=1.0, d1=0.0)

    def ends(**costs: float) -> list[float]:
        served = serve(VLLM(), requests((0.0, 4, 9), (5.0, 5, 2)), times=quick, host=watching(begins=2.0, **costs))
        return [end for end, _, _ in served.log.steps]

    plain, slower = ends(), ends(left=0.25, back=0.5, back_token=0.125)
    # The host hears of a step when it has launched the one that it decided meanwhile: of the third when it has
    # launched the prompt of 1, for which 0 leaves, and of that one when 0 is back, with 6 tokens.
    assert slower[:2] == plain[:2]
    assert slower[2] == plain[2] + 0.25
    assert slower[3:] == [end + 0.25 + 0.5 + 6 * 0.125 for end in plain[3:]]


class Remembering(Anything):
    """Does anything, and remembers who could decode and who waited at each decision."""

    def decide(self, view, now):
        step = super().decide(view, now)
        gone = {*step.preempt, *step.drop}
        self.decoding = {t for t in view.running if t.decoding} - gone
        # The last token of some is in flight: they do not run on.
        self.alive = {t for t in view.running if t.generated < self.outputs[t.id]} - gone
        self.queued = {*view.waiting, *gone}
        self.context = {t: t.computed for t in view.running}
        return step


@dataclass(frozen=True)
class Counting(Watching):
    """Counts again, by the members of each step."""

    policy: Remembering | None = None
    members: set = field(default_factory=set)
    counted: list = field(default_factory=list)

    def launching(self, batch: TokenBatch) -> float:
        policy = self.policy
        lost = set(batch.preempted)
        decode = policy.decoding - lost if batch.chosen is None else set(batch.chosen)
        members = {task for task, _, _ in batch.prefill} | (decode if batch.decode else set())
        left = {t for t in self.members if t in policy.alive and t not in lost} - members
        back = members - self.members - policy.queued - lost
        tokens = sum(policy.context[task] for task in back)
        self.counted.append((batch.regrouped, Regrouped(len(left), len(back), tokens) if left or back else None))
        self.members.clear()
        self.members.update(members)
        return super().launching(batch)


engines = st.fixed_dictionaries(
    {
        "blocks": st.integers(8, 40),
        "max_sequences": st.sampled_from([3, 8, 64]),
        "headroom": st.sampled_from([0, 1]),
        "whole_prompt": st.booleans(),
    }
)


def counted(workload, engine, seed):
    policy = Remembering(seed, repeats=False)
    policy.outputs = [output for _, _, output in rows(workload)]
    host = Counting(lambda n: 0.0, 0.0, ahead=True, left=1e-3, back=1e-3, back_token=1e-6, policy=policy)
    sent = requests(*rows(workload), limit=50)
    serve(policy, sent, slo=SLO, max_batched_tokens=100, host=host, **engine)
    return host.counted


@given(workloads, engines, st.integers(0, 10**6))
@settings(max_examples=120)
def test_who_leaves_and_who_is_back_is_counted_right_whatever_a_policy_does(workload, engine, seed):
    found = counted(workload, engine, seed)
    assert [ours for ours, _ in found] == [by_members for _, by_members in found]


def test_all_of_that_happens():
    engine = {"blocks": 40, "max_sequences": 8, "headroom": 0, "whole_prompt": False}
    found = [moved for seed in range(8) for moved, _ in counted([(0.05, 9, 12)] * 8, engine, seed) if moved]
    assert sum(moved.left > 0 for moved in found) > 20
    assert sum(moved.back > 1 and moved.tokens > 20 for moved in found) > 10
