"""vLLM's own scheduler with speculative decoding and our engine with it decide the same, step by step, with its
prefix cache and without; which drafts are accepted is drawn alike for both."""

import itertools
from typing import NamedTuple

import pytest
from no_gpu import OWN, scheduler, vllm_request
from servetwin.core.llm.speculation import Speculation
from test_adapters import ADAPTERS, adapted
from test_prefix_caching import SETTINGS, shared, turns
from test_same_decisions import Times, simulated
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

DRAFTS = 3
#: Tokens for which memory is kept, by what drafts: n-grams, a model of its own, a head that reads the model's states.
LOOKAHEAD = {"ngram": 0, "draft_model": DRAFTS, "eagle": DRAFTS}


def seconds(pieces, decode, context):
    tokens, squares = sum(n for _, n, _ in pieces), float(sum(n * n for _, n, _ in pieces))
    return Times().step(tokens, squares, float(sum(n * c for _, n, c in pieces)), decode, context)


def scheduled(vllm, before, output, dice):
    """A step of *vllm* as ours are told of (pieces, how many decode, their context, who was preempted), how many
    tokens come out of it for each, and how many requests that begin were padded with drafts."""
    pieces, decode, context, sampled, padded = [], 0, 0, {}, 0
    for rid, tokens in output.num_scheduled_tokens.items():
        request, drafted = vllm.requests[rid], rid in output.scheduled_spec_decode_tokens
        computed = request.num_computed_tokens - tokens
        if drafted and before[rid][1]:
            decode += 1
            context += computed
            sampled[rid] = 1 + dice[int(rid)]()
        else:
            padded += drafted
            pieces.append((int(rid), 1 if drafted else tokens, computed))
            sampled[rid] = 0 if request.is_prefill_chunk else 1
    lost = {int(r) for r, (n, _) in before.items() if r in vllm.requests and vllm.requests[r].num_preemptions > n}
    return (tuple(pieces), decode, context, lost), sampled, padded


def replay(vllm, trace, speculation):
    """Play *trace*: the steps, when each request's tokens came out, and how many requests were padded. Every request
    that has a token gets drafts."""
    left, dice = list(reversed(trace)), {a.id: speculation.dice(a.id, "llm") for a in trace}
    now, steps, times, padded = 0.0, [], {}, 0
    while left or vllm.has_requests():
        while left and left[-1].arrival <= now:
            asked = left.pop()
            times[asked.id] = []
            vllm.add_request(vllm_request(asked, None, vllm.block_size))
        if not vllm.requests:
            if not left:
                break
            now = left[-1].arrival
            continue
        running = {request.request_id for request in vllm.running}
        before = {r: (q.num_preemptions, r in running) for r, q in vllm.requests.items()}
        output = vllm.schedule()
        step, sampled, more = scheduled(vllm, before, output, dice)
        padded += more
        if sampled:
            steps.append(step)
            now += seconds(*step[:3])
        else:
            now = left[-1].arrival
        ids = list(sampled)
        tokens = [[OWN + int(r)] * n for r, n in sampled.items()]
        result = ModelRunnerOutput(ids, {r: i for i, r in enumerate(ids)}, tokens, None, {}, [])
        for out in vllm.update_from_output(output, result).values():
            for one in out.outputs:
                times[int(one.request_id)] += [now] * len(one.new_token_ids)
        vllm.update_draft_token_ids(DraftTokenIds(ids, [[OWN] * DRAFTS for _ in ids]))
    return steps, times, padded


class Same(NamedTuple):
    """What both did: their *steps*, and how many requests were *padded*."""

    steps: list
    padded: int

    @property
    def preempted(self):
        return sum(len(lost) for *_, lost in self.steps)

    @property
    def passed(self):
        """How often one went before another that had come sooner."""
        order = [i for pieces, *_ in self.steps for i, _, c in pieces if c == 0]
        return sum(a > b for a, b in itertools.pairwise(order))


def check(folder, asked, name, method, caching, most=0):
    limits = {**SETTINGS[name], "max_batched_tokens": max(256, SETTINGS[name]["max_batched_tokens"])}
    speculation = Speculation(DRAFTS, (0.8, 0.6, 0.5), LOOKAHEAD[method], reads_states=method == "eagle")
    vllm = scheduler(folder, **limits, caching=caching, drafts=DRAFTS, method=method, max_loras=most)
    theirs, times, padded = replay(vllm, asked, speculation)
    own = {"enable_prefix_caching": caching, "num_speculative_tokens": DRAFTS}
    own |= {"max_loras": most, "adapters": ADAPTERS} if most else {}
    log = simulated(asked, limits, speculation=speculation, **own)
    differ = [i for i, (a, b) in enumerate(zip(theirs, log.steps, strict=False)) if a != b]
    assert not differ, f"{len(differ)} of {len(theirs)} ({differ[0]}): {theirs[differ[0]]} {log.steps[differ[0]]}"
    assert log.times == times
    return Same(theirs, padded)


SOME = [
    ("roomy", shared, "eagle", True),
    ("roomy", turns, "draft_model", True),
    ("chunks", shared, "ngram", True),
    ("tight", shared, "draft_model", False),
    ("tight", turns, "eagle", True),
    ("tighter", shared, "ngram", True),
    ("tighter", turns, "eagle", False),
    ("tighter", shared, "eagle", True),
]

#: (settings, requests, how many, method): one who is preempted leaves a block that is not full, and those before it
#: in the same step have taken theirs, which were others.
ORDER = [("tighter", turns, 200, "ngram"), ("tighter", shared, 680, "eagle")]


@pytest.mark.parametrize(("name", "kind", "method", "caching"), SOME)
def test_it_decides_as_vllm_does(folder, name, kind, method, caching):
    same = check(folder, kind(150, 9.0, seed=1), name, method, caching)
    if name == "tighter":
        assert same.preempted > 5
    if (name, method) == ("chunks", "ngram"):
        assert same.padded  # one who had found all but its last token got drafts, as those that decoded


@pytest.mark.parametrize(("name", "kind", "count", "method"), ORDER)
def test_blocks_are_taken_before_somebody_is_preempted(folder, name, kind, count, method):
    assert check(folder, kind(count, 9.0, seed=2), name, method, True).preempted > 20


#: (settings, method, prefix cache, max_loras)
WITH_ADAPTERS = [
    ("roomy", "ngram", False, 1),
    ("roomy", "eagle", True, 2),
    ("chunks", "ngram", True, 2),
    ("chunks", "draft_model", False, 3),
    ("tight", "eagle", False, 2),
    ("tight", "ngram", True, 3),
    ("tighter", "draft_model", True, 3),
    ("tighter", "ngram", False, 3),
]


@pytest.mark.parametrize(("name", "method", "caching", "most"), WITH_ADAPTERS)
def test_with_adapters_it_decides_as_vllm_does(folder, name, method, caching, most):
    same = check(folder, adapted(150, 9.0, seed=3), name, method, caching, most)
    assert same.passed > 4
    if name == "tighter":
        assert same.preempted > 5


@pytest.mark.slow
@pytest.mark.parametrize("method", LOOKAHEAD)
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("kind", [shared, turns])
@pytest.mark.parametrize("name", SETTINGS)
def test_of_a_thousand_requests(folder, name, kind, caching, method):
    check(folder, kind(1000, 9.0, seed=2), name, method, caching)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("method", LOOKAHEAD)
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_of_a_thousand_requests_with_adapters(folder, name, caching, method, most):
    check(folder, adapted(1000, 9.0, seed=4), name, method, caching, most)
