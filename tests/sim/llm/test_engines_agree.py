"""The fast engine and the plain ones give the same times of all tokens, to the bit."""

from __future__ import annotations

from engines import Linear, requests, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engines import prefill_first, unified
from servetwin.policies.llm.sarathi import Sarathi
from servetwin.policies.llm.vllm import VLLM
from servetwin.policies.llm.vllm_v1 import VLLMV1

gaps = st.sampled_from([0.0, 0.0, 0.01, 0.04, 0.1, 0.3, 2.0])
prompts = st.one_of(st.integers(1, 60), st.sampled_from([1, 15, 16, 17, 32, 48]))
outputs = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 16, 17]))
workloads = st.lists(st.tuples(gaps, prompts, outputs), min_size=1, max_size=25)
blocks = st.integers(7, 30)
sequences = st.sampled_from([1, 3, 8, 256])


def arrivals(workload: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    now, rows = 0.0, []
    for gap, prompt, output in workload:
        now += gap
        rows.append((now, prompt, output))
    return rows


def tokens(served) -> list[list[float]]:
    return [served.log.tokens[i][0] for i in range(len(served.requests))]


@given(workloads, blocks, sequences, st.sampled_from([0, 1]), st.sampled_from([0, 0.1]))
@settings(max_examples=300)
def test_prefill_first(workload, blocks, sequences, headroom, watermark):
    rows = arrivals(workload)
    limits = {"blocks": blocks, "watermark": watermark, "headroom": headroom}
    served = serve(VLLM(), requests(*rows), max_sequences=sequences, max_batched_tokens=100, **limits)
    assert tokens(served) == prefill_first(rows, Linear(), sequences=sequences, tokens=100, **limits)


@given(workloads, blocks, sequences, st.sampled_from([5, 16, 40, 200]), st.booleans())
@settings(max_examples=300)
def test_one_budget(workload, blocks, sequences, budget, whole):
    rows = arrivals(workload)
    sequences = min(sequences, budget)
    limits = {"blocks": blocks, "max_sequences": sequences, "max_batched_tokens": budget, "whole_prompt": whole}
    served = serve(VLLMV1(), requests(*rows), **limits)
    assert tokens(served) == unified(rows, Linear(), blocks=blocks, sequences=sequences, tokens=budget, whole=whole)


@given(workloads, st.sampled_from([4, 16, 40]))
def test_sarathi_is_one_budget_of_its_chunk_while_memory_lasts(workload, chunk):
    rows = arrivals(workload)
    served = serve(Sarathi(chunk), requests(*rows), blocks=10_000, max_sequences=chunk)
    assert tokens(served) == unified(rows, Linear(), blocks=10_000, sequences=chunk, tokens=chunk)
