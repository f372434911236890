"""Options of engines in experiments: what they change, what a run says of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from servetwin.core import BadInput
from servetwin.experiments.assembly import build, engine_options
from servetwin.experiments.backends.diffusion import Plan
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.explaining.alone import Alone
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.envelope.facts import of_experiment
from servetwin.profiles import load as profile

A6000 = "a6000/opt-13b-tp1"
BYTES = 2 * 40 * 5120 * 2  # keys and values of OPT-13B's 40 layers, two bytes each
FP8 = {"kv_cache_dtype": "fp8", "fp8_attention": {"decode": 0.5, "prefill": 1.0, "source": "assumed"}}


def content(engine: dict[str, Any], device: str = A6000, **worker: Any) -> dict[str, Any]:
    return {
        "extends": "opt-13b-a6000",
        "workload": {"draws": "seeded", "requests": 20, "lengths": {"llm": {"output": {"tokens": 20}}}},
        "policy": {"name": "vllm-v1"},
        "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 500.0}},
        "deployment": {
            "devices": {"gpu0": device},
            "workers": [{"modules": ["llm"], "device": "gpu0", "limit": 256, "engine": engine, **worker}],
        },
    }


def experiment(folder: Path, engine: dict[str, Any], *set_: tuple[str, Any], **keys: Any) -> Experiment:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content(engine, **keys)))
    return load(path, set_)


# -- KV in 8 bits -------------------------------------------------------------------------------------------


def test_one_request_alone_takes_what_the_closed_form_says(tmp_path: Path) -> None:
    made = experiment(tmp_path, FP8, ("workload.requests", 1))
    summary = build.run(made)
    table = profile(A6000).tokens("corrected", "measured")
    prompt = next(iter(build.build(made).source)).tokens["llm"][0]  # type: ignore[attr-defined]
    without = table.decode(1, 0)
    seconds = table.prefill(prompt)
    for j in range(19):
        seconds += without + 0.5 * (table.decode(1, prompt + j) - without)
    assert summary.as_dict()["mean_e2el_ms"] == pytest.approx(1000.0 * seconds)


def test_policies_and_explanations_go_by_the_same_times(tmp_path: Path) -> None:
    plain, fp8 = (experiment(tmp_path, engine) for engine in ({}, FP8))
    views = [build.build(e).loop.workers[0].view for e in (plain, fp8)]
    grown = [view.estimate_decode(4, 4000) - view.estimate_decode(4, 0) for view in views]  # type: ignore[attr-defined]
    assert grown[1] == pytest.approx(0.5 * grown[0])
    assert [view.blocks for view in views] == [1403, 2806]  # type: ignore[attr-defined]
    tables = [Alone(e)._table("llm") for e in (plain, fp8)]
    assert tables[1].decode(1, 1000) < tables[0].decode(1, 1000)


def test_half_the_bytes_are_handed_over(tmp_path: Path) -> None:
    took = []
    for engine in ({}, FP8):
        made = content(engine)
        made["deployment"] = {
            "devices": {"a": A6000, "b": A6000},
            "workers": [
                {"name": r, "modules": ["llm"], "device": d, "limit": 256, "role": r, "engine": engine}
                for r, d in (("prefill", "a"), ("decode", "b"))
            ],
            "handover": {"gb_per_s": 1.0, "source": "assumed", "link": "unlimited"},
        }
        path = tmp_path / "apart.yaml"
        path.write_text(yaml.safe_dump(made))
        took.append(build.run(load(path)).as_dict()["mean_handover_ms"])
    assert took[1] == pytest.approx(0.5 * took[0])
    assert took[0] > 0.0


def test_a_profile_may_say_it(tmp_path: Path) -> None:
    how = {
        "how": "made up",
        "source": {"file": "here"},
        "meaning": "attention",
        "modules": ["decode"],
        "unit": "ratio",
    }
    data = profile(A6000).data.model_dump(mode="json", exclude_none=True)
    data["costs"] = {f"kv.fp8.{kind}": {**how, "value": value} for kind, value in (("decode", 0.5), ("prefill", 1.0))}
    own = tmp_path / "own-profile.yaml"
    own.write_text(yaml.safe_dump(data))
    said = build.run(experiment(tmp_path, {"kv_cache_dtype": "fp8"}, device=str(own))).as_dict()
    stated = build.run(experiment(tmp_path, FP8)).as_dict()
    assert said["mean_e2el_ms"] == stated["mean_e2el_ms"]
    del data["costs"]["kv.fp8.prefill"]
    own.write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput, match=r"has no cost kv\.fp8\.prefill"):
        build.build(experiment(tmp_path, {"kv_cache_dtype": "fp8"}, device=str(own)))


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"kv_cache_dtype": "fp8"}, {}, r"a6000/opt-13b-tp1 has no cost kv\.fp8\.decode"),
    ({"kv_cache_dtype": "int4"}, {}, "'int4' does not fit"),
    ({"fp8_attention": FP8["fp8_attention"]}, {}, "without kv_cache_dtype: fp8 it is not looked at"),
    ({**FP8, "fp8_attention": {"decode": 0.5, "prefill": 1.0}}, {}, "key 'source' is missing"),
    ({**FP8, "fp8_attention": {"decode": 0.0, "prefill": 1.0, "source": "x"}}, {}, "greater than 0"),
    ({**FP8, "preemption": "swap"}, {}, "what moving blocks of KV in fp8 takes is not known"),
    (FP8, {"device": "cpu/tiny-opt"}, "is of a model in fp32"),
]


@pytest.mark.parametrize(("engine", "keys", "says"), WRONG)
def test_what_does_not_fit_is_refused(
    engine: dict[str, Any], keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        build.build(experiment(tmp_path, engine, **keys))


def test_engines_that_hand_over_keep_kv_alike(tmp_path: Path) -> None:
    made = content({})
    made["deployment"] = {
        "devices": {"a": A6000, "b": A6000},
        "workers": [
            {"name": r, "modules": ["llm"], "device": d, "limit": 256, "role": r, "engine": engine}
            for r, d, engine in (("prefill", "a", FP8), ("decode", "b", {}))
        ],
        "handover": {"gb_per_s": 1.0, "source": "assumed"},
    }
    path = tmp_path / "apart.yaml"
    path.write_text(yaml.safe_dump(made))
    with pytest.raises(BadInput, match="keep it in different types"):
        load(path)


# -- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [FP8])
def test_runs_say_what_they_stand_on_and_nothing_else_takes_them(engine: dict[str, Any], tmp_path: Path) -> None:
    made = experiment(tmp_path, engine)
    assert any("assumed" in line for line in build.run(made).as_dict()["basis"])
    assert any("assumed" in line for line in build.stands_on(made))
    assert any(key in word for key in engine for word in of_experiment(made).special)
    with pytest.raises(BadInput, match="the bound knows nothing of"):
        most_met(made)
    with pytest.raises(BadInput, match="the real side knows nothing of"):
        Plan(made, diffusion=False)


def test_files_say_nothing_of_options_that_are_off(tmp_path: Path) -> None:
    said = experiment(tmp_path, {}).as_dict()["deployment"]["workers"][0]["engine"]
    assert not set(said) & {"kv_cache_dtype", "fp8_attention"}
    assert engine_options.stands_on(experiment(tmp_path, {})) == []
    whole = experiment(tmp_path, FP8).as_dict()
    assert whole["deployment"]["workers"][0]["engine"]["kv_cache_dtype"] == "fp8"
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert load(path) == experiment(tmp_path, FP8)
