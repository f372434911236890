"""Classes of requests, what traces say of single ones, and predictions of lengths."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.llm import Lengths
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import results_of
from servetwin.experiments.workload.predictions import predictor
from servetwin.experiments.workload.seed_effect import depends_on_seed

IMAGES = "dit-s2-256-rtx4090"
FAST = {"share": 1, "tenant": "a", "priority": -1, "weight": 2.0, "slo": {"factor": 2.0}}
SLOW = {"share": 3, "tenant": "b", "steps": {"dit": {"draw": "constant", "steps": 10}}}


def images(classes: dict[str, Any], **more: Any) -> Experiment:
    return load({"extends": IMAGES, "workload": {"requests": 400, "draws": "seeded", "classes": classes}, **more})


def chat(predict: dict[str, Any] | None = None, classes: dict[str, Any] | None = None, **more: Any) -> Experiment:
    lengths = {
        "prompt": {"draw": "uniform", "low": 10, "high": 99},
        "output": {"draw": "uniform", "low": 1, "high": 200},
    }
    lengths |= {"predict": predict} if predict is not None else {}
    workload = {"requests": 60, "draws": "seeded", "lengths": {"llm": lengths}, "classes": classes or {}}
    return load({"extends": "opt-13b-a6000", "workload": workload, **more})


def sent(experiment: Experiment) -> list[Any]:
    return [*build(experiment).source]


def test_classes_come_by_their_shares_and_bring_their_terms() -> None:
    made = sent(images({"fast": FAST, "slow": SLOW}))
    by_class = Counter(r.class_name for r in made)
    assert by_class["fast"] + by_class["slow"] == 400
    assert 70 <= by_class["fast"] <= 130  # 100 expected, standard deviation 9
    fast = [r for r in made if r.class_name == "fast"]
    assert {(r.priority, r.tenant, r.weight) for r in fast} == {(-1, "a", 2.0)}
    assert {r.work["dit"] for r in made if r.class_name == "slow"} == {10}


def test_what_a_class_does_not_say_is_as_without_classes() -> None:
    """The same seed gives those without steps of their own the same steps, and all the same arrivals."""
    plain, made = sent(images({})), sent(images({"fast": FAST, "slow": SLOW}))
    assert [r.arrival for r in made] == [r.arrival for r in plain]
    assert all(a.work == b.work for a, b in zip(made, plain, strict=True) if a.class_name == "fast")
    slow = {r.id: r.slo for r in made if r.class_name == "slow"}
    fast = [(a, b) for a, b in zip(made, plain, strict=True) if a.class_name == "fast"]
    assert all(a.slo / b.slo == pytest.approx(2.0 / 3.0, rel=0.2) for a, b in fast)
    assert all(slo == pytest.approx(0.29662, abs=1e-4) for slo in slow.values())  # of 10 steps


def test_an_slo_is_laid_over_key_by_key(tmp_path: Path) -> None:
    experiment = images({"fast": FAST}, slo={"factor": 3.0, "constant": 0.5})
    assert experiment.slo_of("fast").constant == 0.5
    again = load(experiment.as_dict())
    assert again.digest() == experiment.digest()
    assert again.slo_of("fast") == experiment.slo_of("fast")
    assert "classes" not in images({}).as_dict()["workload"]


def test_results_by_class_in_rows() -> None:
    experiment = images({"fast": FAST, "slow": SLOW})
    row = results_of(experiment, run(experiment))
    assert row["class.fast.requests"] + row["class.slow.requests"] == 400
    share = sum(row[f"class.{n}.requests"] * row[f"class.{n}.attainment"] for n in ("fast", "slow")) / 400
    assert share == pytest.approx(row["attainment"])
    assert 0.0 < row["jain_attainment"] <= 1.0
    assert depends_on_seed(experiment)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({"a": {"share": 1}, "b": {}}, "classes.b.share: other classes have a share"),
        ({"a": {}}, "classes.a.share: it has none, and there is no trace"),
        ({"a": {"share": 1, "steps": {"vae": {"draw": "constant", "steps": 3}}}}, "no steps for 'vae'"),
        ({"a": {"share": 1, "slo": {"prefill": 3.0, "decode": 1.5}}}, "of another kind"),
        ({"a": {"share": 1, "weight": 0}}, "weight"),
        ({"a b": {"share": 1}}, "'a b' is no name of a class"),
        ({"a": {"share": 1, "tier": 2}}, "tier"),
    ],
)
def test_what_does_not_fit_is_one_line(classes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        images(classes)


# -- traces ---------------------------------------------------------------------------------------------------------


def of_trace(path: Path, text: str, classes: dict[str, Any] | None = None) -> Experiment:
    path.write_text(text)
    arrivals = {"process": "trace", "file": str(path)}
    steps = {"dit": {"draw": "trace"}}
    content = {"requests": None, "draws": "seeded", "arrivals": arrivals, "steps": steps, "classes": classes or {}}
    return load({"extends": IMAGES, "workload": content})


def test_a_trace_says_tenant_priority_weight_and_slo(tmp_path: Path) -> None:
    text = "arrival,steps,tenant,priority,weight,slo\n0,5,ann,-2,0.5,1.25\n1,7,bob,,,\n"
    first, second = sent(of_trace(tmp_path / "t.csv", text))
    assert (first.tenant, first.priority, first.weight, first.slo) == ("ann", -2, 0.5, 1.25)
    assert (second.tenant, second.priority, second.weight) == ("bob", 0, 1.0)
    assert second.slo == pytest.approx(sent(of_trace(tmp_path / "u.csv", "arrival,steps\n0,7\n"))[0].slo)


def test_a_trace_says_the_class_and_more_than_it(tmp_path: Path) -> None:
    classes = {name: {k: v for k, v in said.items() if k != "share"} for name, said in (("f", FAST), ("s", SLOW))}
    text = "arrival,steps,class,tenant\n0,5,s,\n1,7,f,\n2,9,f,c\n"
    made = sent(of_trace(tmp_path / "t.csv", text, classes))
    assert [(r.class_name, r.tenant, r.work["dit"]) for r in made] == [("s", "b", 10), ("f", "a", 7), ("f", "c", 9)]


@pytest.mark.parametrize(
    ("text", "classes", "says"),
    [
        ("arrival,steps,priority\n0,5,high\n", {}, "t.csv:2: priority: 'high' is no priority"),
        ("arrival,steps,weight\n0,5,-1\n", {}, "t.csv:2: weight: '-1' is no weight"),
        ("arrival,steps,slo\n0,5,0\n", {}, "t.csv:2: slo: '0' is no seconds"),
        ("arrival,steps,tenant\n0,5," + "x" * 65 + "\n", {}, "is no name"),
        ("arrival,steps,class\n0,5,f\n1,5,g\n", {"f": {}}, "t.csv:3: class: there is no class 'g'"),
        ("arrival,steps,class\n0,5,f\n1,5,\n", {"f": {}}, "t.csv:3: class: it does not say its class"),
        ("arrival,steps\n0,5\n", {"f": {}}, "does not say of which class"),
        ("arrival,steps,class\n0,5,f\n", {"f": {"share": 1}}, "no class can have a share of them"),
    ],
)
def test_what_a_trace_may_not_say(tmp_path: Path, text: str, classes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        build(of_trace(tmp_path / "t.csv", text, classes))


# -- language models ------------------------------------------------------------------------------------------------


def test_classes_have_deadlines_of_tokens_and_lengths_of_their_own() -> None:
    short = {"prompt": {"draw": "constant", "tokens": 5}, "output": {"draw": "constant", "tokens": 8}}
    strict = {"share": 1, "slo": {"prefill": 1e-3, "decode": 1e-3}, "lengths": {"llm": short}}
    summary = run(chat(classes={"strict": strict, "lax": {"share": 1}})).as_dict()
    assert summary["classes"]["strict"]["met"] == 0  # nobody can be as fast as a thousandth of alone
    assert summary["classes"]["lax"]["attainment"] > 0.9
    assert summary["classes"]["strict"]["on_time_tokens"] == 0
    assert 0 < summary["on_time_tokens"] == summary["classes"]["lax"]["on_time_tokens"]


def test_limits_by_class_are_counted() -> None:
    limits = {"slo": {"limits": {"e2el_ms": 1e-3}}, "share": 1}
    summary = run(chat(classes={"none": limits, "all": {"share": 1}}, slo={"limits": {"e2el_ms": 1e9}})).as_dict()
    assert summary["within_limits"] == summary["classes"]["all"]["met"] == summary["classes"]["all"]["requests"]


def test_what_is_predicted_is_said_everywhere() -> None:
    experiment = chat({"model": "exact"})
    made = sent(experiment)
    assert all(r.predicted["llm"] == r.outputs["llm"] for r in made)
    summary = run(experiment)
    assert "oracle" in summary.as_dict()["predictions"]["llm"]
    assert "oracle" in results_of(experiment, summary)["predictions"]
    assert all(r.predicted is None for r in sent(chat()))
    noisy = chat({"model": "noisy", "sigma": 0.5})
    assert "sigma 0.5" in run(noisy).as_dict()["predictions"]["llm"]


def test_predictions_can_be_set_by_their_key() -> None:
    said = load("opt-13b-a6000", [("workload.lengths.llm.predict", {"model": "noisy", "sigma": 0.5})])
    assert said.workload.lengths["llm"].predict is not None
    assert said.workload.lengths["llm"].predict.model == "noisy"
    assert load("opt-13b-a6000", [("rate", 2.0)]).digest() != said.digest()


def test_classes_can_be_set_where_there_are_none() -> None:
    classes = {"fast": {"share": 1.0, "tenant": "a"}}
    experiment = load("opt-13b-a6000", [("workload.draws", "seeded"), ("workload.classes", classes)])
    assert {r.tenant for r in sent(experiment)} == {"a"}
    same = load("opt-13b-a6000", [("workload.requests", load("opt-13b-a6000").workload.requests)])
    assert same.digest() == load("opt-13b-a6000").digest()


def test_predictions_change_nothing_else() -> None:
    plain, noisy = sent(chat()), sent(chat({"model": "noisy", "sigma": 1.0}))
    assert [(r.arrival, r.tokens, r.outputs) for r in plain] == [(r.arrival, r.tokens, r.outputs) for r in noisy]
    other = sent(chat({"model": "noisy", "sigma": 1.0}, seed=1))
    assert [r.predicted for r in noisy] != [r.predicted for r in other]
    assert [r.predicted for r in noisy] == [r.predicted for r in sent(chat({"model": "noisy", "sigma": 1.0}))]


def predicting(predict: dict[str, Any], low: int = 1, high: int = 1000) -> Any:
    output = {"draw": "uniform", "low": low, "high": high}
    lengths = Lengths.model_validate(
        {"prompt": {"draw": "constant", "tokens": 9}, "output": output, "predict": predict}
    )
    return predictor(lengths, "llm", seed=3)


def test_the_error_of_a_noisy_prediction_is_as_declared() -> None:
    predict = predicting({"model": "noisy", "sigma": 0.5})
    errors = np.log([predict(100_000, 10**9) / 100_000 for _ in range(20_000)])
    assert np.mean(errors) == pytest.approx(0.0, abs=0.02)
    assert np.std(errors) == pytest.approx(0.5, rel=0.03)
    assert all(1 <= predict(3, 5) <= 5 for _ in range(200))


def test_buckets_end_at_their_edges_and_are_right_as_often_as_declared() -> None:
    sure = predicting({"model": "buckets", "edges": [10, 100]})
    assert [sure(n, 500) for n in (1, 10, 11, 100, 101, 500)] == [10, 10, 100, 100, 500, 500]
    assert sure(40, 60) == 60  # the declared limit ends what is above it
    unsure = predicting({"model": "buckets", "edges": [10, 100], "accuracy": 0.7})
    found = Counter(unsure(50, 500) for _ in range(20_000))
    assert found[100] / 20_000 == pytest.approx(0.7, abs=0.02)
    assert found[10] / found[500] == pytest.approx(1.0, abs=0.1)


def test_quantiles_hold_equal_shares() -> None:
    predict = predicting({"model": "buckets", "quantiles": 4})
    found = Counter(predict(n, 1000) for n in range(1, 1001))
    assert len(found) == 4
    assert all(math.isclose(count, 250, abs_tol=15) for count in found.values())


@pytest.mark.parametrize(
    ("predict", "says"),
    [
        ({"model": "buckets"}, "buckets have edges, or are quantiles"),
        ({"model": "buckets", "edges": [9, 3]}, "the edges do not rise"),
        ({"model": "noisy"}, "sigma"),
        ({"model": "perfect"}, "predict"),
    ],
)
def test_a_prediction_that_is_not_well_said(predict: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        chat(predict)


# -- columns that nobody would read ---------------------------------------------------------------------------------

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens,class,slo\n2023-11-16 18:15:46.5,9,3,chat,1.25\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type,class,slo\n5,m,9,3,12,x,chat,1.25\n"
MOONCAKE = '{"timestamp": 7, "input_length": 9, "output_length": 3, "class": "chat", "slo": 1.25}\n'


def of_tokens(path: Path, text: str) -> Experiment:
    path.write_text(text)
    lengths = {"llm": {"prompt": {"draw": "trace"}, "output": {"draw": "trace"}, "limit": 512}}
    arrivals = {"process": "trace", "file": str(path)}
    workload = {"requests": None, "draws": "seeded", "arrivals": arrivals, "lengths": lengths}
    return load({"extends": "opt-13b-a6000", "workload": workload})


@pytest.mark.parametrize(("name", "text"), [("t.csv", AZURE), ("t.csv", BURSTGPT), ("t.jsonl", MOONCAKE)])
def test_traces_of_every_format_say_class_and_slo(tmp_path: Path, name: str, text: str) -> None:
    """In formats that others publish such columns were ignored: an SLO that nobody can meet was met."""
    (only,) = sent(of_tokens(tmp_path / name, text))
    assert (only.class_name, only.slo) == ("chat", 1.25)
    assert run(of_tokens(tmp_path / name, text.replace("1.25", "0.001"))).as_dict()["classes"]["chat"]["late"] == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "arrival,steps,SLO\n0,5,1\n", "'SLO' would not be read .*call it slo, in seconds"),
        ("t.csv", "arrival,steps,slo_ms\n0,5,1\n", "'slo_ms' would not be read"),
        ("t.csv", "arrival,steps,deadline\n0,5,1\n", "'deadline' would not be read"),
        ("t.csv", "arrival,steps,Class Name\n0,5,a\n", "'Class Name' would not be read .*call it class"),
        ("t.csv", "arrival,steps,tenants\n0,5,a\n", "'tenants' would not be read .*call it tenant"),
        ("t.jsonl", '{"arrival": 0, "steps": 5}\n{"arrival": 1, "steps": 5, "SLO": 1}\n', "t.jsonl:2: .*'SLO'"),
        ("t.csv", AZURE.replace("slo", "slo_s"), "'slo_s' would not be read"),
        ("t.json", '{"arrival": [0, 1], "steps": [5, 5], "slo": 0.001}', "t.json: slo is no list"),
        ("t.json", '{"arrival": [0], "steps": [5], "steps": [9]}', "key 'steps' stands twice"),
        ("t.jsonl", '{"arrival": 0, "steps": 5, "steps": 9}\n', "t.jsonl:1: .*key 'steps' stands twice"),
        ("t.csv", "arrival,steps,height\n0,5,256\n1,5,512\n", "t.csv:2: it says a height, and no width"),
        ("t.csv", "arrival,steps,weight\n0,5,1e-320\n", "'1e-320' is no weight .*from 1e-09 to 1e"),
        ("t.csv", "arrival_us,steps\n1700000000000,5\n", "microseconds is probably an epoch in milliseconds"),
    ],
)
def test_what_nobody_would_read_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    with pytest.raises(BadInput, match=says):
        build(of_tokens(path, text) if "ContextTokens" in text else of_trace(path, text))


def test_columns_of_other_names_and_images_of_another_size_are_said(tmp_path: Path) -> None:
    text = "arrival,steps,user,size\n0,5,ann,1024x1024\n1,5,bob,1024x1024\n"
    said = run(of_trace(tmp_path / "t.csv", text)).as_dict()["trace"]
    assert said["not_used"] == {"user": ""}
    assert said["other_images"].startswith("its images are of 1024x1024, and steps take what those of 256x256 take")
    same = run(of_trace(tmp_path / "u.csv", text.replace("1024x1024", "256x256"))).as_dict()["trace"]
    assert "other_images" not in same
