"""Experiments whose prefill and decode are apart: what is refused, what a run leaves, and what explains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from servetwin.core import BadInput
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.assembly.handovers import profiles_by_role, stands_on
from servetwin.experiments.backends.diffusion import Plan
from servetwin.experiments.explaining.explanation import explain
from servetwin.experiments.explaining.telling import instead
from servetwin.experiments.reporting import document
from servetwin.experiments.reporting.markdown import markdown
from servetwin.experiments.reporting.report import document as report_of
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.point import run_point
from servetwin.profiles import load as profile

A6000, H100 = "a6000/opt-13b-tp1", "h100/opt-13b-tp1"
BYTES = 2 * 40 * 5120 * 2  # keys and values of OPT-13B's 40 layers, two bytes each


def worker(role: str | None, number: int = 0, **keys: Any) -> dict[str, Any]:
    name = f"{role}{number}"
    return {"name": name, "modules": ["llm"], "device": name, "limit": 256, "role": role, **keys}


def apart(**changes: Any) -> dict[str, Any]:
    plan = {
        "devices": {"prefill0": A6000, "decode0": A6000},
        "workers": [worker("prefill"), worker("decode")],
        "handover": {"gb_per_s": 25.0, "source": "assumed"},
    }
    return {
        "extends": "opt-13b-a6000",
        "workload": {"requests": 40, "lengths": {"llm": {"output": {"tokens": 20}}}},
        "policy": {"name": "vllm-v1"},
        "deployment": {**plan, **changes},
    }


def file(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "apart.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def own_profile(folder: Path, cost: dict[str, Any]) -> str:
    """A profile that says what handing KV over takes."""
    content = profile(A6000).data.model_dump(mode="json", exclude_none=True)
    how = {"how": "made up", "source": {"file": "here"}, "meaning": "a prompt", "modules": ["decode"]}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**content, "costs": {"kv.handover": {**how, "unit": "seconds", **cost}}}))
    return str(path)


OFFLOADS = {"enable_prefix_caching": True, "kv_offloading": {"gib": 40, "gb_per_s": 20, "source": "assumed"}}
STANDS = {"handover": {"gb_per_s": 25.0, "source": "assumed", "overlap": False}}
WRONG = [
    ({"handover": None}, "nothing says what handing KV over to the workers that decode costs"),
    ({"handover": {"gb_per_s": 25.0}}, "nothing says where the bandwidth comes from"),
    ({"handover": {}}, "a6000/opt-13b-tp1 has no cost kv.handover"),
    ({"handover": {"bytes_per_token": 100.0}}, "without a bandwidth, bytes are not looked at"),
    ({"handover": {"gb_per_s": 0.0, "source": "assumed"}}, "deployment.handover.gb_per_s"),
    ({"handover": {"gb_per_s": 25.0, "source": "assumed", "router": "nobody"}}, "unknown router 'nobody'"),
    ({"handover": {"gb_per_s": 1e-300, "source": "assumed"}}, "deployment.handover.gb_per_s"),
    ({"handover": {"gb_per_s": 25.0, "latency": 1e300, "source": "assumed"}}, "deployment.handover.latency"),
    ({"handover": {"gb_per_s": 25.0, "source": "assumed", "link": "wire"}}, "deployment.handover.link"),
    ({"workers": [worker("prefill")]}, "'llm' has no worker with the role decode"),
    ({"workers": [worker("decode")]}, "'llm' has no worker with the role prefill"),
    ({"workers": [worker("prefill"), worker("decode"), worker(None, device="prefill0")]}, "have a role"),
    ({"workers": [worker("prefill"), worker("decode", device="prefill0")]}, "has a worker that prefills"),
    ({"workers": [worker("prefill", engine={"keep_freed": True}), worker("decode")]}, "keep_freed is not known"),
    ({"workers": [worker("prefill"), worker("decode", engine=OFFLOADS)]}, "KV in host memory is not known"),
    (
        {"workers": [worker("prefill", engine={"asynchronous": True}), worker("decode")], **STANDS},
        "nothing stands still",
    ),
    ({"workers": [worker("prefills"), worker("decode")]}, "deployment.workers.0.role"),
    ({"devices": {"prefill0": A6000, "decode0": "a6000/opt-30b-tp2"}}, "models whose KV differs"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_what_is_wrong_is_said_in_one_line(servetwin, tmp_path, changes, message) -> None:
    code, _, error = servetwin("run", file(tmp_path, apart(**changes)))
    assert (code, message in error, error.strip().count("\n")) == (2, True, 0), error


def test_a_hand_over_needs_roles(servetwin, tmp_path) -> None:
    content = {"extends": "opt-13b-a6000", "deployment": {"handover": {"gb_per_s": 25.0, "source": "assumed"}}}
    code, _, error = servetwin("run", file(tmp_path, content))
    assert code == 2
    assert "no worker has a role" in error


def test_the_real_side_and_the_bound_refuse_it(servetwin, tmp_path) -> None:
    path = file(tmp_path, apart())
    code, _, error = servetwin("bound", path)
    assert (code, "the bound knows nothing of prefill and decode apart" in error) == (2, True)
    with pytest.raises(BadInput, match="the real side knows nothing of prefill and decode apart") as refused:
        Plan(load(path), diffusion=False)
    assert refused.value.right == "workers without a role, or --backend sim"


@pytest.mark.parametrize("handover", [{"gb_per_s": 25.0, "source": "assumed"}, {}], ids=["stated", "of the profile"])
def test_without_transport_it_is_said_to_take_no_time(tmp_path, handover) -> None:
    path = file(tmp_path, apart(handover=handover))
    said = stands_on(load(path, [("time.transport", False)]))
    assert said == ["KV is handed over in no time: time.transport is false"]
    assert stands_on(load(path)) == (["KV is handed over at 25 GB/s, after 0 s: assumed"] if handover else [])


def test_a_report_tells_of_it(tmp_path) -> None:
    out = tmp_path / "run"
    build.run(load(file(tmp_path, apart())), out)
    summary = json.loads((out / "summary.json").read_text())["llm"]["llm"]
    text = markdown(report_of([out]), "")
    (row,) = (line for line in text.splitlines() if line.startswith("| llm | 40 |"))
    wait, way = (document.seconds(summary[f"mean_handover{key}_ms"] / 1e3) for key in ("_wait", ""))
    assert row == f"| llm | 40 | {wait} | {way} |"
    assert "KV is handed over at 25 GB/s, after 0 s: assumed." in text


def test_kv_takes_its_bytes_at_the_bandwidth(tmp_path) -> None:
    """By the model of the profile; or as it is said; and nothing without transport."""
    path = file(tmp_path, apart())
    for settings, seconds in (
        ([], lambda n: n * BYTES / 25e9),
        ([("deployment.handover.latency", 0.5)], lambda n: 0.5 + n * BYTES / 25e9),
        ([("deployment.handover.bytes_per_token", 1e6)], lambda n: n * 1e6 / 25e9),
        ([("time.transport", False)], lambda n: 0.0),
    ):
        run = build.build(load(path, settings))
        (handover,) = run.loop.handovers
        assert handover.transfer.seconds["prefill0"](1000) == pytest.approx(seconds(1000))


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [({"value": 0.25}, 0.25), ({"line": {"constant": 0.01, "per_request": 1e-4}}, 0.11)],
    ids=["value", "line"],
)
def test_what_a_profile_says_of_it(tmp_path, cost, seconds) -> None:
    """Of 1000 tokens."""
    devices = {"prefill0": own_profile(tmp_path, cost), "decode0": A6000}
    (handover,) = build.build(load(file(tmp_path, apart(devices=devices, handover={})))).loop.handovers
    assert handover.transfer.seconds["prefill0"](1000) == pytest.approx(seconds)


@pytest.mark.parametrize("line", [{"constant": 1.0, "per_request": -0.01}, {"constant": -1.0, "per_request": 0.01}])
def test_a_profile_by_which_it_takes_less_than_no_time_is_refused(tmp_path, line) -> None:
    with pytest.raises(BadInput, match=r"costs.kv.handover.*(less than no time|holds -1)"):
        profile(own_profile(tmp_path, {"line": line}))


def test_the_model_is_looked_at_where_bytes_are_stated_too(tmp_path) -> None:
    said = {"gb_per_s": 25.0, "source": "assumed", "bytes_per_token": 1.0}
    path = file(tmp_path, apart(devices={"prefill0": A6000, "decode0": "a6000/opt-30b-tp2"}, handover=said))
    with pytest.raises(BadInput, match="models whose KV differs"):
        build.build(load(path))


def test_a_run_leaves_records_that_keep_the_invariants_and_explain_it(tmp_path, servetwin) -> None:
    workers = [worker("prefill"), worker("prefill", 1), worker("decode"), worker("decode", 1)]
    devices = {w["name"]: A6000 for w in workers}
    path = file(tmp_path, apart(workers=workers, devices=devices))
    out = tmp_path / "run"
    code, said, error = servetwin("run", path, "--out", out, "--set", "workload.arrivals.rate=8")
    assert code == 0, error
    assert "KV is handed over at 25 GB/s, after 0 s: assumed" in said
    check_records(out)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["handovers"], summary["finished"]) == (40, 40)
    stays = [json.loads(line)["stages"][0] for line in (out / "requests.jsonl").read_text().splitlines()]
    prompts = sum(stay["prompt"] for stay in stays)
    assert summary["mean_handover_ms"] == pytest.approx(prompts / 40 * BYTES / 25e9 * 1000)
    assert {stay["handover"]["from"] for stay in stays} == {"prefill0", "prefill1"}
    assert {stay["worker"] for stay in stays} == {"decode0", "decode1"}
    for found in explain(out, worst=40):
        handed = next(stay for stay in stays if stay["last_token"] == found.ended)["handover"]
        assert sum(found.seconds.values()) == pytest.approx(found.latency)
        assert found.seconds["hand-over"] == pytest.approx(handed["handed"] - handed["sent"])
        assert not any("do not say for sure" in note for note in found.notes)
        (stage,) = found.stages
        assert sorted({n for own in stage.of_worker.values() for n in own}) == sorted(stage.batches)
        assert set(stage.of_worker) <= {handed["from"], stage.worker.rpartition(" and ")[2]}
        assert all(f" of {name} " in (instead(stage) or "") for name, own in stage.of_worker.items() if any(own))


def test_a_run_keeps_the_invariants_where_memory_is_short(tmp_path) -> None:
    small = {"engine": {"blocks": 60, "max_model_len": 600, "max_batched_tokens": 600}}
    path = file(tmp_path, apart(workers=[worker("prefill", **small), worker("decode", **small)]))
    checker = InvariantChecker()
    run = build.build(load(path, [("workload.arrivals.rate", 20.0)]), checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    assert run.recorder.summary.as_dict()["preemptions"] > 0


def test_deadlines_are_those_of_the_devices_that_prefill_and_decode(tmp_path) -> None:
    devices = {"prefill0": H100, "decode0": A6000}
    experiment = load(file(tmp_path, apart(devices=devices)))
    known = {name: profile(path) for name, path in devices.items()}
    for spec in experiment.deployment.workers:
        assert [p.name for p in profiles_by_role(experiment, spec, known)] == [H100, A6000]


def test_without_roles_an_experiment_says_nothing_of_them() -> None:
    content = load("opt-13b-a6000").as_dict()
    assert "handover" not in content["deployment"]
    assert all("role" not in spec for spec in content["deployment"]["workers"])


def test_engines_that_decide_ahead_hand_over_too(tmp_path) -> None:
    """By a profile of vLLM with asynchronous scheduling; alone on both sides nothing of the hosts is seen twice."""
    devices = {"prefill0": "h200-chat/llama-3.1-8b", "decode0": "h200-chat/llama-3.1-8b"}
    caches = {"engine": {"enable_prefix_caching": True}}
    workers = [worker("prefill", **caches), worker("decode", **caches)]
    summary = build.run(load(file(tmp_path, apart(devices=devices, workers=workers)))).as_dict()
    assert summary["handovers"] == summary["requests"] == 40
    assert summary["prefix_cache_hits"] == summary["handover_hits"] == 0  # no two prompts begin alike


def test_the_sweep_that_comes_along_says_what_was_handed_over_and_who_wins() -> None:
    """As many requests per second and GPU on each side; the report has the whole table."""
    path = sweep.find("prefill-decode-apart")
    points, _ = sweep.points(sweep.read(path), path)
    assert len(points) == 63
    rows = {}
    for made in points:
        limits, rate = made.slo.limits, made.workload.arrivals.rate  # type: ignore[union-attr]
        gpus = len(made.deployment.devices)
        if limits is not None and limits.tpot_ms == 40.0 and rate == 3.0 * gpus and made.name != "together-distserve":
            fewer = made.workload.model_copy(update={"requests": 150})
            rows[made.name] = run_point(made.model_copy(update={"workload": fewer}))
    together, apart = rows["together-vllm"], rows["apart-2-1"]
    assert apart["attainment"] > 0.99 > 0.9 > together["attainment"]
    assert "handovers" not in together
    assert apart["handovers"] == 150
    assert apart["mean_handover_ms"] == pytest.approx(1000 * 512 * BYTES / 300e9)
    assert apart["mean_handover_wait_ms"] > 0.0
