"""Where results stand against recorded runs: inside, or what is outside, by what the recordings themselves hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from servetwin.experiments.assembly import build
from servetwin.experiments.registry.catalog import MEASURED, workload_names
from servetwin.experiments.spec.experiment import System
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation import scoreboard
from servetwin.experiments.validation.envelope import index, keys, recorded, standing
from servetwin.experiments.validation.envelope.facts import Asked, Facts, of_experiment
from servetwin.experiments.workload.traces import sample

AGAIN = "python -m servetwin.experiments.validation.envelope.index"

#: As it comes along, it is as runs were that were recorded; `test_what_is_as_recorded_is_inside...` holds that.
LIKE_RECORDED = "dit-s2-256-h100"

TWO = [{"modules": ["dit"], "device": "gpu0", "limit": 4}, {"modules": ["vae"], "device": "gpu1", "limit": 4}]


def told(*settings: tuple[str, object], of: str = LIKE_RECORDED) -> tuple[str, ...]:
    return standing.of(load(of, list(settings))).outside


def test_points_with_the_same_requests_are_looked_at_once_and_stand_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rate, the times of arrivals and the policy."""
    sweep = [
        load(of, [("requests", requests), ("rate", rate), ("policy", policy), *more])
        for of, policies in (("opt-13b-a6000", ("vllm", "sarathi")), (LIKE_RECORDED, ("neustream",)))
        for policy in policies
        for requests in (20, 30)
        for rate in (1.0, 2.0)
        for more in (
            [],
            [("workload.arrivals", {"process": "constant", "rate": rate})],
            [("workload.draws", "seeded")],
        )
    ]
    azure = str(sample("azure.csv"))
    traces = [{"process": "trace", "file": azure, "rate": rate} for rate in (1.0, 2.0)]
    sweep += [load("opt-13b-a6000", [("workload.arrivals", trace), ("requests", 10)]) for trace in traces]
    alone = [standing.of(experiment) for experiment in sweep]
    looks, look = [], Asked.of
    monkeypatch.setattr(Asked, "of", lambda sent: looks.append(1) or look(sent))
    assert standing.of_all(sweep) == alone
    # By number of requests, of opt-13b-a6000 also by draws (the other is "seeded" as it is); and of a trace by rate.
    assert len(looks) == 2 * 2 + 2 + 2


# -- the index ------------------------------------------------------------------------------------------


def test_what_is_kept_is_of_the_recordings_profiles_and_gaps_that_are_here() -> None:
    kept = json.loads(index.KEPT.read_text())
    assert list(kept["recordings"]) == list(recorded.sources()), AGAIN
    scores = scoreboard.kept()
    for source, entry in kept["recordings"].items():
        assert entry["digest"] == scoreboard.digest(source), AGAIN
        assert entry["gap"] == (list(scores[source].gap) if source in scores else None), AGAIN
    from servetwin.profiles import load as profile

    for name, digest, *_ in kept["systems"]:
        assert profile(name).digest == digest, AGAIN
    assert set(scores) - {f"{scoreboard.ROWS[0].source}, dates unknown"} <= set(kept["recordings"])


@pytest.mark.parametrize(
    "source",
    ["h200-quiet/diffusion", "h200-pair", "h200/llm-opt-30b.json.gz", "h200-chat/runs-opt-13b.json.gz", "rtx4090"],
)
def test_runs_are_read_as_they_are_kept(source: str) -> None:
    """Of each kind of recording a small one, read again."""
    runs = [facts for path in recorded.sources()[source] for facts in recorded.of(path)]
    made = {"systems": (systems := {}), "recordings": {source: {"runs": index.packed(runs, systems)}}}
    beside = {"gap": None, "undated": None, "scored": len(runs)}
    made["recordings"][source] |= beside
    made["systems"] = [list(vars(system).values()) for system in systems]
    again = index.read(json.loads(json.dumps(made)))
    assert [one.runs for one in again] == [one.runs for one in index.load() if one.source == source], AGAIN
    assert all(standing.standing(facts).validated for facts in runs)


def test_nothing_that_is_held_out_is_read() -> None:
    assert not any("rtxpro6000" in str(path) for paths in recorded.sources().values() for path in paths)


# -- what is inside -------------------------------------------------------------------------------------


def test_what_is_as_recorded_is_inside_and_says_how_far_off_the_simulation_was() -> None:
    found = standing.of(load(LIKE_RECORDED))
    gap = scoreboard.kept()["h100-quiet/diffusion"].gap
    assert (found.validated, found.outside, found.recording) == (True, (), "h100-quiet/diffusion")
    assert (found.mean_gap, found.largest_gap) == gap
    assert str(found) == (
        f"inside what was validated (h100-quiet/diffusion: the simulation is off by {gap[0]:.2f} points on average, "
        f"{gap[1]:.2f} at most)"
    )


def test_of_the_artifact_the_gap_is_that_of_runs_whose_day_is_known_or_not() -> None:
    kept = scoreboard.kept()
    for session, row in (("2024-04-28 17:41:55", "neustream_ae.csv"), (None, "neustream_ae.csv, dates unknown")):
        found = standing.of(load("palette-256-rtx4090", [("time.session", session)]))
        assert found.validated
        assert (found.mean_gap, found.largest_gap) == kept[row].gap


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        (("policy", "srpt"), "policy srpt (recorded: "),
        (("policy.params.step_delta", 0.5), "neustream with step_delta 0.5 (recorded: its defaults)"),
        (("rate", 900.0), "load of dit, steps/s "),
        (("cv", 3.0), "cv 3 (recorded: 1"),
        (("slo", 50.0), "SLO factor 50 (recorded: "),
        (("workload.steps.dit", {"draw": "uniform", "low": 5, "high": 90}), "steps of dit 5 to 90 (recorded: "),
        (("workload.arrivals", {"process": "bursty", "rate": 9.0}), "bursty arrivals"),
        (("workload.classes", {"a": {"share": 1.0, "tenant": "x"}}), "classes of requests"),
        (("time.contention", False), "time.contention false"),
        (("time.table", "scheduler"), "time.table scheduler"),
        (("deployment.replicas", 3), "replicas 3 (recorded: 1)"),
        (("deployment.workers.0.limit", 64), "batch limit of "),
        (("deployment", "whole"), "policy neustream (recorded so: clockwork)"),
        (("deployment.workers", TWO), "modules on workers as dit / vae (recorded: "),
    ],
)
def test_what_is_not_as_recorded_is_told_in_words(setting: tuple[str, object], word: str) -> None:
    two = ("deployment.devices", dict.fromkeys(("gpu0", "gpu1"), load(LIKE_RECORDED).deployment.devices["gpu0"]))
    found = told(*([two, setting] if setting[1] is TWO else [setting]))
    assert any(word in text for text in found), found


@pytest.mark.parametrize("setting", [("seed", 7), ("requests", 30), ("time.noise", False), ("rate", 80.0)])
def test_what_changes_nothing_of_that_stays_inside(setting: tuple[str, object]) -> None:
    assert told(setting) == ()


def test_load_is_steps_per_second_so_that_longer_requests_are_more_load() -> None:
    few = {"draw": "constant", "steps": 16}
    names = {text.partition(" ")[0] for text in told(("workload.steps.dit", few), ("rate", 5000.0))}
    assert "load" in names
    assert not any(text.startswith("rate") for text in told(("rate", 5000.0)))


def test_another_profile_and_another_device_are_told(tmp_path: Path) -> None:
    from servetwin.profiles import load as profile
    from servetwin.profiles.profile import DATA

    name = load(LIKE_RECORDED).deployment.devices["gpu0"]
    text = (DATA / f"{name}.yaml").read_text()
    assert profile(name).data.device.name in text
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("precision: fp16", "precision: fp8", 1))
    assert told(("deployment.devices.gpu0", str(own)))[0] == f"profile {name} (not as it is of the recorded runs)"
    own.write_text(text.replace(f"name: {name}", "name: mine", 1).replace(profile(name).data.model, "DiT-S/2", 1))
    assert told(("deployment.devices.gpu0", str(own)))[0] == "profile mine (no recorded runs by it)"
    own.write_text(text.replace("device: {name: NVIDIA H100 80GB HBM3", "device: {name: NVIDIA B200", 1))
    (found,) = told(("deployment.devices.gpu0", str(own)))
    assert found.startswith("no recorded runs of DiT-S/2, 256x256 on NVIDIA B200 (recorded on NVIDIA ")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("enable_prefix_caching", True, "prefix caching true (recorded: false)"),
        ("max_batched_tokens", 4096, "max_num_batched_tokens 4096 (recorded: 8192, 2048)"),
        ("asynchronous", False, "asynchronous scheduling false (recorded: true)"),
        ("blocks", 5000, "KV blocks of llm 5000 (recorded: "),
    ],
)
def test_language_models_are_held_against_engines_and_lengths(key: str, value: object, word: str) -> None:
    settings = [("deployment.devices.gpu0", "h200-chat/llama-3.1-8b"), ("policy", "vllm-v1")]
    before = told(*settings, of="opt-13b-h100-async")
    assert any(text.startswith("mean output of llm, tokens ") for text in before)
    found = told(*settings, (f"deployment.workers.0.engine.{key}", value), of="opt-13b-h100-async")
    assert any(text.startswith(word) for text in found), found
    assert not any(text.startswith(word) for text in before)


def apart(prefill: int, decode: int, **more: object) -> dict[str, object]:
    """So many workers that prefill, and that decode, on devices of their own."""
    names = [f"{role}{i}" for role, count in (("prefill", prefill), ("decode", decode)) for i in range(count)]
    workers = [{"name": n, "modules": ["llm"], "device": n, "limit": 256, "role": n[:-1]} for n in names]
    handover = {"gb_per_s": 50.0, "source": "assumed"}
    return {"devices": dict.fromkeys(names, "h100/opt-13b-tp1"), "workers": workers, "handover": handover, **more}


@pytest.mark.parametrize(
    ("plan", "replicas", "sharing", "routers"),
    [
        (apart(1, 1), 1, 1, []),
        (apart(3, 1), 1, 1, ["router least_loaded"]),
        (apart(1, 2), 1, 2, ["router least_loaded"]),
        (apart(2, 2, router="jsq"), 1, 2, ["router jsq", "router least_loaded"]),
        (apart(1, 2, replicas=3), 3, 6, ["router least_loaded"]),
    ],
    ids=["1 and 1", "3 and 1", "1 and 2", "2 and 2", "three times 1 and 2"],
)
def test_where_prefill_and_decode_are_apart_the_load_is_of_those_that_decode(
    plan, replicas, sharing, routers
) -> None:
    whole = of_experiment(load("opt-13b-h100")).ranges["load of llm, output tokens/s"][0]
    facts = of_experiment(load("opt-13b-h100", [("deployment", plan)]))
    assert facts.ranges["replicas"] == (replicas, replicas)
    assert facts.ranges["load of llm, output tokens/s"][0] == pytest.approx(whole / sharing)
    assert [word for word in facts.special if word.startswith("router")] == routers


def test_every_workload_that_comes_along_stands_somewhere() -> None:
    for name in workload_names():
        found = standing.of(load(name))
        assert found.validated == (not found.outside)
        assert found.recording is None or (MEASURED / found.recording).exists()
        assert found.recording is not None or "no recorded runs of" in found.outside[0]


@given(st.data())
def test_between_recorded_numbers_is_inside_and_beyond_them_is_not(data: st.DataObject) -> None:
    """Of any recorded run, each number moved beyond all that were recorded is told, and nothing else is."""
    every = [run for one in index.load() for run in one.runs]
    run = data.draw(st.sampled_from(every))
    assert standing.standing(run).validated
    loads = any(name.startswith("load ") for name in run.ranges)
    names = [name for name in run.ranges if not (loads and name.startswith("rate"))]
    name = data.draw(st.sampled_from(sorted(names)))
    moved = standing.standing(replace(run, ranges={**run.ranges, name: (1e9, 1e9)}))
    assert not moved.validated
    assert any(text.startswith(name) for text in moved.outside)


def test_several_results_are_told_in_a_line() -> None:
    experiments = [load(LIKE_RECORDED, [("policy", policy)]) for policy in ("edf", "srpt", "srpt")]
    found = standing.of_all(experiments)
    assert standing.summary(found) == (
        "1 of 3 points inside what was validated (h100-quiet/diffusion); outside: policy srpt (2)"
    )
    assert standing.summary(found[:1]) == str(found[0])


def test_a_run_with_no_facts_in_common_is_outside() -> None:
    assert not standing.standing(Facts((), "edf")).validated
    facts = of_experiment(load(LIKE_RECORDED))
    assert standing.standing(replace(facts, ranges={})).validated


# -- key by key -----------------------------------------------------------------------------------------

LLM = "opt-13b-h100-async"
ENGINE = "deployment.workers.0.engine"
LENGTHS = "workload.lengths.llm"


@pytest.mark.parametrize("kind", keys.LISTED, ids=lambda kind: kind.__name__)
def test_each_key_of_an_experiment_is_told_or_listed(kind: type[BaseModel]) -> None:
    """Fails where a key is told by nothing, or where one is listed that is no more."""
    assert keys.LISTED[kind].keys() <= kind.model_fields.keys()
    # Those that hold others by name are gone through; all others are told if they are set.
    through = {"workers": [], "lengths": {}}
    empty = dict.fromkeys(kind.model_fields) | {k: v for k, v in through.items() if k in kind.model_fields}
    for name in kind.model_fields.keys() - keys.LISTED[kind].keys() - through.keys():
        assert name in dict(keys.told(kind.model_construct(**{**empty, name: "set"}))), name


def test_every_part_of_an_experiment_is_gone_through_or_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(System):
        new_key: int = 0

    monkeypatch.setattr(keys, "LISTED", {**keys.LISTED, Longer: {}})
    experiment = load(LLM)
    for value, expected in ((0, []), (3, ["system.new_key 3"])):
        own = experiment.model_copy(update={"system": Longer(new_key=value)})
        assert list(keys.words(own)) == expected


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("system.client_delay", 10.0, "system.client_delay 10.0"),
        ("system.client_stretch", 50.0, "system.client_stretch 50.0"),
        ("system.stop_after", 0.0, "system.stop_after 0.0"),
        ("slo.constant", 1000.0, "slo.constant 1000.0"),
        ("slo.base", "measured", "slo.base measured"),
        ("deployment.estimates", "measured", "deployment.estimates measured"),
        ("deployment.workers.0.intake", "after", "deployment.workers.dit.intake after"),
        (
            "pipeline",
            {"modules": {"vae": {}, "dit": {"loop": True}}},
            "pipeline vae > dit (loop true) (recorded: ",
        ),
        ("requests", 10**5, "requests 100000 (recorded: 600)"),
    ],
)
def test_what_diffusion_runs_did_not_have_is_outside(key: str, value: object, word: str) -> None:
    assert any(text.startswith(word) for text in told((key, value)))


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("slo.meets", "last", "slo.meets last"),
        ("slo.window", {"skip": 0.0, "requests": 5}, "slo.window ("),
        (f"{LENGTHS}.limit", 2000, "declared limit of llm, tokens "),
        (f"{LENGTHS}.predict", {"model": "exact"}, f"{LENGTHS}.predict (model exact)"),
        (f"{LENGTHS}.output", {"draw": "choice", "values": [1, 63]}, "each output of llm, tokens 1 to 63"),
        (f"{LENGTHS}.output", {"draw": "constant", "tokens": 32}, "spread of output of llm, tokens 0"),
        (f"{ENGINE}.watermark", 0.9, "watermark 0.9 (recorded: 0.0)"),
        (f"{ENGINE}.headroom", 5000, "headroom 5000 (recorded: 0)"),
        (f"{ENGINE}.stamp", "seen", "stamp seen (recorded: sent)"),
        (f"{ENGINE}.whole_prompt", False, f"{standing.ENGINE['whole_prompt']} false (recorded: true)"),
        (f"{ENGINE}.preparing", {"seconds": 5.0, "source": "x"}, "preparing 5.0 (recorded: none)"),
        ("requests", 10**5, "requests 100000 (recorded: "),
    ],
)
def test_what_runs_of_language_models_did_not_have_is_outside(key: str, value: object, word: str) -> None:
    assert told(of=LLM) == ()
    assert any(text.startswith(word) for text in told((key, value), of=LLM))


@pytest.mark.parametrize("column", ["", ",priority"])
def test_all_of_a_trace_is_looked_at(tmp_path: Path, column: str) -> None:
    def outside(prompts: list[int]) -> tuple[str, ...]:
        file = tmp_path / f"{len(prompts)}.csv"
        last = ",2" if column else ""
        lines = [f"{i / 20},{tokens},{16 + i % 33}{last}" for i, tokens in enumerate(prompts)]
        file.write_text("\n".join([f"arrival,input_tokens,tokens{column}", *lines]) + "\n")
        from_it = {"prompt": {"draw": "trace"}, "output": {"draw": "trace"}, "limit": 48}
        settings = [("workload.trace", {"file": str(file)}), (LENGTHS, from_it), ("requests", len(prompts))]
        return told(*settings, of=LLM)

    recorded_like = [sent.tokens["llm"][0] for sent in _drawn(LLM)][:500]
    assert outside(recorded_like) == (("a trace with SLOs, classes or priorities of requests",) if column else ())
    assert any("each prompt of llm, tokens" in text for text in outside([*recorded_like, *[1900] * 50]))


def _drawn(name: str) -> list[Any]:
    experiment = load(name)
    return list(build.build(experiment).source or ())


def test_limits_that_recorded_runs_were_held_to_are_missed() -> None:
    every = [run for one in index.load() for run in one.runs]
    run = next(run for run in every if "ttft limit, ms" in run.ranges and "tpot limit, ms" in run.ranges)
    less = {name: span for name, span in run.ranges.items() if name != "tpot limit, ms"}
    assert "without tpot limit" in standing.standing(replace(run, ranges=less)).outside


# -- where it is said -----------------------------------------------------------------------------------


def test_commands_say_it_in_a_line_and_strict_refuses(servetwin, tmp_path: Path) -> None:
    run = ("run", LIKE_RECORDED, "--requests", "20")
    code, out, _ = servetwin(*run)
    assert code == 0
    assert out.count("validity: inside what was validated") == 1
    assert servetwin(*run, "--strict")[0] == 0
    code, out, err = servetwin(*run, "--policy", "srpt", "--strict", "--out", tmp_path / "a")
    assert (code, out) == (2, "")
    assert err.startswith("servetwin: --strict: outside what was validated (h100-quiet/diffusion): policy srpt")
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_strict_and_json_tell_all_that_is_outside(servetwin) -> None:
    many = (
        "policy=srpt",
        "slo.factor=50",
        "workload.arrivals.cv=3",
        "workload.arrivals.rate=900",
        "time.costs=false",
    )
    run = ("run", LIKE_RECORDED, "--requests", "20", *(word for setting in many for word in ("--set", setting)))
    outside = json.loads(servetwin(*run, "--json")[1])["validity"]["outside"]
    assert len(outside) == len(set(outside)) == len(many) > standing.MOST
    code, _, error = servetwin(*run, "--strict")
    assert (code, error.count("\n")) == (2, 1)
    assert "; ".join(outside) in error
    assert " more" not in error
    assert f"; and {len(outside) - standing.MOST} more" in servetwin(*run)[1]
