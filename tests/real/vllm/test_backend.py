"""``servetwin run --backend vllm``: the records of a real run are those of a simulation."""

import itertools
import json

import pytest
from servetwin.core import BadInput
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.backends.profile import measure
from servetwin.experiments.backends.vllm import VllmBackend
from servetwin.experiments.explaining.explanation import explain
from servetwin.experiments.spec.loading import load


@pytest.fixture(scope="module")
def backend():
    return VllmBackend()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("policy", ["vllm-v1", "neustream-llm"])
def test_a_run_leaves_the_records_of_a_simulation(backend, tmp_path, policy):
    experiment = load(
        "tiny-opt-cpu", [("requests", 40), ("policy", policy), ("slo.prefill", 500), ("slo.decode", 500)]
    )
    report = backend.run(experiment, tmp_path / "real")
    build.run(experiment, tmp_path / "sim")
    assert report.summary.met == 40
    for name in ("requests.jsonl", "batches.jsonl"):
        real, sim = lines(tmp_path / "real" / name)[0], lines(tmp_path / "sim" / name)[0]
        real.pop("ends", None), sim.pop("ends", None)
        assert list(real) == list(sim)
    check_records(tmp_path / "real")
    summary, other = (json.loads((tmp_path / side / "summary.json").read_text()) for side in ("real", "sim"))
    assert set(summary) == set(other)
    assert summary["total_output_tokens"] == other["total_output_tokens"]
    assert summary["total_input_tokens"] == other["total_input_tokens"]
    meta = json.loads((tmp_path / "real" / "meta.json").read_text())
    assert meta["kind"] == "real"
    assert meta["engine"]["vllm"]
    assert json.loads((tmp_path / "real" / "real.json").read_text())["steps"] > 40


def test_the_public_call_serves_by_vllm():
    import servetwin

    slo = {"settings": {"slo.prefill": 500, "slo.decode": 500}, "requests": 10}
    real = servetwin.run("tiny-opt-cpu", backend="vllm", policy="vllm-v1", **slo)
    simulated = servetwin.run("tiny-opt-cpu", policy="vllm-v1", **slo)
    assert real.met == simulated.met == 10
    assert real.real["steps"] > 10
    for column in ("prompt", "generated"):
        assert real.requests[column] == simulated.requests[column]
    with pytest.raises(servetwin.Error, match="this machine serves on cpu"):
        servetwin.run("opt-13b-h100", backend="vllm")


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("opt-13b-h100", [], "this machine serves on cpu"),
        ("opt-13b-a6000", [], "vLLM's V1 engine is not like that"),
        ("tiny-opt-cpu", [("deployment.workers.0.engine.keep_freed", True)], "only there"),
        ("tiny-sd-cpu", [], "vLLM cannot serve"),
    ],
)
def test_what_vllm_cannot_serve_is_said_before_anything_is_written(backend, tmp_path, name, changes, says):
    with pytest.raises(BadInput, match=says):
        backend.run(load(name, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_profile_from_the_command_line_serves_a_simulation(tmp_path):
    out = tmp_path / "mine.yaml"
    found = measure("tiny-opt", out, name="here/tiny-opt")
    assert found.name == "here/tiny-opt"
    assert found.data.device.kind == "cpu"
    experiment = load("tiny-opt-cpu", [("deployment.devices.gpu0", str(out)), ("requests", 20)])
    assert build.run(experiment).finished == 20
    assert VllmBackend().run(experiment).summary.finished == 20
    with pytest.raises(BadInput, match="there already"):
        measure("tiny-opt", out)
    with pytest.raises(BadInput, match="wants a GPU"):
        measure("opt-13b", tmp_path / "other.yaml")
    with pytest.raises(BadInput, match="unknown model 'opt-14b'"):
        measure("opt-14b", tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize("policy", ["vllm-v1", "fastserve"])
def test_what_a_real_run_is_explained_by_adds_up(backend, tmp_path, policy):
    """From the steps alone follows when each token of each request came out, also under a policy that lets some of
    those decode that could."""
    changes = [("requests", 40), ("rate", 200.0), ("policy", policy), ("records.tokens", True)]
    backend.run(load("tiny-opt-cpu", changes), tmp_path / "real")
    records = {r["id"]: r for r in lines(tmp_path / "real" / "requests.jsonl")}
    found = explain(tmp_path / "real", requests=list(records))
    assert len(found) == 40
    for one in found:
        assert sum(one.seconds.values()) == pytest.approx(one.latency, abs=1e-9)
        assert not one.notes
        if one.outcome not in ("met", "late"):
            continue
        assert one.slack.lost == (one.outcome == "late")
        before = [0] + [p.tokens[0] if p.tokens else 0 for p in one.spans]
        came = [p.end for p, (a, b) in zip(one.spans, itertools.pairwise(before), strict=True) if b > a]
        assert came == pytest.approx(records[one.id]["stages"][0]["tokens"], abs=1e-9)
