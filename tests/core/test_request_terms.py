"""Priority, tenant, weight and class of requests: seen by policies, kept in records, told apart in results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines import Linear, Log, Told, requests, serve, view_of
from harness import WorkerSetup, simulate
from servetwin.core import Decision, Module, Pipeline, Policy, Request, RunFolder
from servetwin.core.errors import PolicyFault
from servetwin.core.group_metrics import jain
from servetwin.core.invariants.record_checker import check_records
from servetwin.core.llm import ALL, EngineLimits, Step, TokenDeadlines, TokenRequest, TokenView
from servetwin.core.llm.metrics import TokenSummary
from servetwin.core.records import request_record
from servetwin.policies.llm.vllm import VLLM

PIPELINE = Pipeline.chain(Module("m", loop=True))


class ByPriority(Policy):
    """One at a time, the lowest priority first; of equals the tenant whose name comes first."""

    def decide(self, view, now: float) -> Decision:
        waiting = sorted(view.waiting, key=lambda t: (t.request.priority, t.request.tenant, t.id))
        return Decision([*view.running, *waiting][:1])


def at_once(*terms: dict) -> list[Request]:
    return [Request(i, 1.0, 3.5, {"m": 1}, **said) for i, said in enumerate(terms)]


def served(sent: list[Request], policy: Policy, **more):
    return simulate(PIPELINE, [WorkerSetup(["m"], policy, limit=1)], sent, **more)


def test_usual_terms() -> None:
    for request in (Request(0, 0.0, 1.0, {}), TokenRequest(0, 0.0, {})):
        assert (request.priority, request.tenant, request.weight, request.class_name) == (0, "", 1.0, "")
        assert request.predicted is None


def test_policies_go_by_them() -> None:
    sent = at_once({"priority": 5}, {"priority": 1, "tenant": "b"}, {"priority": 1, "tenant": "a"}, {"priority": -1})
    served(sent, ByPriority())
    assert [r.id for r in sorted(sent, key=lambda r: r.finished)] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "value"), [("priority", -9), ("tenant", "me"), ("weight", 99.0), ("class_name", "first")]
)
def test_policies_may_not_write_them(name: str, value: object) -> None:
    class Greedy(ByPriority):
        def decide(self, view, now: float) -> Decision:
            for task in view.waiting:
                exec(f"task.request.{name} = value", {"task": task, "value": value})
            return super().decide(view, now)

    with pytest.raises(PolicyFault, match=name):
        served(at_once({}, {}), Greedy())


def test_results_by_class_and_tenant() -> None:
    a, b = {"tenant": "a", "class_name": "chat"}, {"tenant": "b", "class_name": "batch", "weight": 2.0}
    run = served(at_once(a, b, b, b, {}), ByPriority())
    # One iteration takes a second and all came at 1: the one without a tenant first, then a, then b at 4, 5, 6.
    said = run.summary.as_dict()
    assert said["requests"] == 5
    assert {k: v["met"] for k, v in said["tenants"].items()} == {"a": 1, "b": 1}
    assert said["tenants"]["b"]["attainment"] == pytest.approx(1 / 3)
    assert said["tenants"]["b"]["late"] == 2
    assert said["classes"]["batch"]["mean_e2el_ms"] == pytest.approx(4000.0)
    assert said["classes"]["chat"]["request_goodput"] == pytest.approx(1 / said["duration"])
    assert said["tenants"]["b"]["service"] == 3
    assert said["fairness"]["jain_attainment"] == pytest.approx((4 / 3) ** 2 / (2 * (1 + 1 / 9)))
    assert said["fairness"]["jain_service"] == pytest.approx(2.5**2 / (2 * (1 + 1.5**2)))


def test_nobody_named_nothing_said() -> None:
    said = served(at_once({}, {"priority": 3}), ByPriority()).summary.as_dict()
    assert not said.keys() & {"classes", "tenants", "fairness"}


def test_jains_index_of_the_paper() -> None:
    """k of n with equal shares, and the others with none: k / n (Jain, Chiu, Hawe 1984, section 3)."""
    assert jain([1.0] * 20 + [0.0] * 80) == pytest.approx(0.2)
    assert jain([3.0, 3.0]) == pytest.approx(jain([0.1, 0.1]))


def test_records_say_what_is_not_usual(tmp_path: Path) -> None:
    recorder = RunFolder(tmp_path / "run", {})
    terms = {"priority": 2, "tenant": "a", "weight": 0.5, "class_name": "chat"}
    served(at_once(terms, {}), ByPriority(), recorder=recorder)
    recorder.close()
    lines = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    first, second = sorted(lines, key=lambda line: line["id"])
    assert {k: first[k] for k in ("class", "tenant", "priority", "weight")} == {
        "class": "chat", "tenant": "a", "priority": 2, "weight": 0.5,
    }  # fmt: skip
    assert not second.keys() & {"class", "tenant", "priority", "weight"}
    check_records(tmp_path / "run")


# -- language models ----------------------------------------------------------------------------------------------


def test_a_prediction_is_seen_and_the_truth_is_not() -> None:
    seen = []

    def shortest(view, now: float) -> Step:
        waiting = sorted(view.waiting, key=lambda t: t.predicted)
        seen.extend((t.id, t.predicted, t.limit) for t in waiting)
        return Step([(waiting[0], waiting[0].pending)]) if waiting and not view.running else Step(decode=ALL)

    sent = [
        TokenRequest(i, 0.0, {"llm": (10, 50)}, {"llm": output}, predicted={"llm": guess})
        for i, (output, guess) in enumerate([(3, 30), (20, 7), (5, 12)])
    ]
    run = serve(Told(shortest), sent)
    assert [number for number, _, _ in sorted(run.log.ends, key=lambda e: e[2])] == [1, 2, 0]
    assert set(seen) == {(0, 30, 50), (1, 7, 50), (2, 12, 50)}
    assert all(r["stages"][0]["predicted"] in (30, 7, 12) for r in run.log.records)
    assert "predicted" not in request_record(requests((0.0, 5, 5))[0])


@pytest.mark.parametrize("word", ["predicted", "request.priority", "request.tenant"])
def test_policies_may_not_write_predictions(word: str) -> None:
    def greedy(view, now: float) -> Step:
        for task in view.waiting:
            exec(f"task.{word} = 1", {"task": task})
        return VLLM.decide(policy, view, now)

    policy = VLLM()
    with pytest.raises(PolicyFault, match=word.rpartition(".")[2]):
        serve(Told(greedy), requests((0.0, 10, 3)))


def test_tokens_by_class() -> None:
    slo = TokenDeadlines(3.0, 1.5, 0.02, 0.0, lambda n: 0.1)
    sent = [
        TokenRequest(i, 0.0, {"llm": (10, 5)}, {"llm": 5}, class_name=name, tenant=name)
        for i, name in enumerate(["chat", "chat", "batch"])
    ]

    log = Log()
    log.summary = TokenSummary({"llm": slo})
    serve(VLLM(), sent, slo=slo, times=Linear(), log=log)
    said = log.summary.as_dict()
    assert {k: v["total_output_tokens"] for k, v in said["classes"].items()} == {"batch": 5, "chat": 10}
    assert sum(v["on_time_tokens"] for v in said["classes"].values()) == said["on_time_tokens"]
    assert said["tenants"]["chat"]["service"] == 2 * (10 + 5)  # prompts and outputs
    ttfts = [r.tasks[0].first_token for r in sent]
    assert said["classes"]["chat"]["mean_ttft_ms"] == pytest.approx(1000 * sum(ttfts[:2]) / 2)


def test_seconds_of_a_mixed_step() -> None:
    """What the view says a step with chunks and decodes takes is what the engine then takes."""
    times, said = Linear(), []

    def mixed(view, now: float) -> Step:
        waiting, running = list(view.waiting), [t for t in view.running if not t.decoding]
        chunks = [(t, min(t.pending, 7)) for t in running + waiting]
        said.append((now, view.estimate_step(chunks, view.decoding)))
        assert view.estimate_step((), view.decoding) == (
            view.estimate_decode(view.decoding, view.context) if view.decoding else 0.0
        )
        return Step(chunks, ALL)

    sent = requests((0.0, 20, 6), (0.05, 13, 4), (0.2, 9, 5))
    run = serve(Told(mixed), sent, times=times)
    ends = [end for end, _, _ in run.log.steps]
    starts = [0.0, *ends]
    took = {start: end - start for start, end in zip(starts, ends, strict=False)}
    checked = [(took[now], seconds) for now, seconds in said if now in took]
    assert len(checked) >= 5
    assert all(seconds == pytest.approx(real - times.gap, abs=1e-9) for real, seconds in checked[1:])


def test_a_view_made_by_hand_adds_the_parts_up() -> None:
    whole = view_of(Linear(), EngineLimits(100))
    view = TokenView(
        whole.stage, EngineLimits(100), estimate_prefill=lambda n, _: 0.01 * n, estimate_decode=lambda b, c: 0.5 * b
    )
    task = serve(VLLM(), requests((0.0, 4, 2))).requests[0].tasks[0]
    assert view.estimate_step([(task, 4)], 2, 9) == pytest.approx(0.04 + 1.0)
    assert view.estimate_step() == 0.0
