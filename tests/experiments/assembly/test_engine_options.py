"""Options of engines in experiments: what they change, what a run says of them, and what is refused."""

from __future__ import annotations

import json
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
from servetwin.experiments.spec.llm import OPTIONS
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.envelope.facts import of_experiment
from servetwin.profiles import load as profile

A6000 = "a6000/opt-13b-tp1"
BYTES = 2 * 40 * 5120 * 2  # keys and values of OPT-13B's 40 layers, two bytes each
FP8 = {"kv_cache_dtype": "fp8", "fp8_attention": {"decode": 0.5, "prefill": 1.0, "source": "assumed"}}

H200 = "h200/opt-13b-tp1"
CONFIG: dict[str, Any] = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "acceptance": 0.7,
    "source": "assumed",
    "draft": {"seconds": 0.001, "seconds_each": 0.0001, "source": "assumed"},
}
#: A profile of an engine of vLLM's default, which decides a step while the one before computes.
AHEAD = ("deployment.devices.gpu0", "h200-steps/opt-13b")
DRAFTS: dict[str, Any] = {"headroom": 0, "stamp": "sent", "speculative_config": CONFIG}


def content(engine: dict[str, Any], device: str = A6000, **more: str) -> dict[str, Any]:
    return {
        "extends": "opt-13b-a6000",
        "workload": {"draws": "seeded", "requests": 20, "lengths": {"llm": {"output": {"tokens": 20}}}},
        "policy": {"name": "vllm-v1"},
        "slo": {"prefill": None, "decode": None, "limits": {"ttft_ms": 500.0}},
        "deployment": {
            "devices": {"gpu0": device, **more},
            "workers": [{"modules": ["llm"], "device": "gpu0", "limit": 256, "engine": engine}],
        },
    }


def experiment(
    folder: Path, engine: dict[str, Any], *set_: tuple[str, Any], classes: Any = None, **keys: Any
) -> Experiment:
    path, made = folder / "own.yaml", content(engine, **keys)
    if classes is not None:
        made["workload"]["classes"] = classes
    path.write_text(yaml.safe_dump(made))
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


# -- speculative decoding -----------------------------------------------------------------------------------


def drafts(
    folder: Path,
    *set_: tuple[str, Any],
    engine: dict[str, Any] | None = None,
    devices: dict[str, str] | None = None,
    **config: Any,
) -> Experiment:
    """An engine on an H200 that drafts, with another *config*."""
    own = {**DRAFTS, **(engine or {}), "speculative_config": {**CONFIG, **config}}
    given = [("time.table", "measured"), ("deployment.workers.0.limit", 64), *set_]
    return experiment(folder, own, *given, device=H200, **(devices or {}))


def test_certain_drafts_take_what_the_closed_form_says(tmp_path: Path) -> None:
    """Of 20 tokens the first comes with the prompt, and four with each of five steps (the last gives three)."""
    made = drafts(tmp_path, ("workload.requests", 1), acceptance=1.0)
    summary = build.run(made).as_dict()
    table = profile(H200).tokens("measured")
    prompt = next(iter(build.build(made).source)).tokens["llm"][0]  # type: ignore[attr-defined]
    seconds = table.prefill(prompt) + 0.001 + table.between(1)
    for j in range(5):
        seconds += table.mixed(3, 9.0, 0.0, 1, prompt + 4 * j) + 0.001 + 0.0001 + (table.between(1) if j < 4 else 0.0)
    assert summary["mean_e2el_ms"] == pytest.approx(1000.0 * seconds)
    assert (summary["spec_decode_num_drafts"], summary["mean_acceptance_length"]) == (5, 4.0)


def test_drafts_may_come_from_a_model_whose_profile_is_named(tmp_path: Path) -> None:
    """It computes what the step did, and decodes two more tokens by itself."""
    said = {"draft": {"device": "small"}, "method": "draft_model", "acceptance": 0.0}
    one = ("workload.requests", 1)
    made = drafts(tmp_path, one, engine={"blocks": 1000}, devices={"small": "h200/codellama-7b"}, **said)
    free = drafts(tmp_path, one, acceptance=0.0, draft={"seconds": 0.0, "source": "nothing"})
    took = [build.run(each).as_dict()["mean_e2el_ms"] / 1000.0 for each in (made, free)]
    small = profile("h200/codellama-7b").tokens("measured")
    prompt = next(iter(build.build(made).source)).tokens["llm"][0]  # type: ignore[attr-defined]
    drafting = small.prefill(prompt)
    for j in range(19):
        drafting += sum(small.decode(1, prompt + j + i) for i in range(3))
    assert took[0] - took[1] == pytest.approx(drafting)
    assert "drafts are made in the times of h200/codellama-7b (device small)" in build.stands_on(made)
    assert build.build(made).loop.workers[0].engine.ahead == 3  # type: ignore[attr-defined]


def test_rates_may_be_those_of_vllms_metrics(tmp_path: Path) -> None:
    made = drafts(tmp_path, acceptance=None, synthetic_acceptance_rates=[0.8, 0.4, 0.0])
    config = made.deployment.workers[0].engine.speculative_config  # type: ignore[union-attr]
    assert config is not None
    assert config.probabilities == (0.8, 0.5, 0.0)
    assert engine_options.speculation_of(config, 0).reached == (0.8, 0.4, 0.0)


def test_records_and_runs_say_what_was_accepted(tmp_path: Path) -> None:
    summary = build.run(drafts(tmp_path), tmp_path / "run").as_dict()
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    visits = [json.loads(line)["stages"][0] for line in lines]
    assert sum(v["drafted"] for v in visits) == summary["spec_decode_num_draft_tokens"]
    assert sum(v["accepted"] for v in visits) == summary["spec_decode_num_accepted_tokens"] > 0
    again = build.run(drafts(tmp_path)).as_dict()
    assert again["mean_e2el_ms"] == summary["mean_e2el_ms"]
    other = build.run(drafts(tmp_path, ("seed", 1), ("workload.draws", "published_llm"))).as_dict()
    same = build.run(drafts(tmp_path, ("workload.draws", "published_llm"))).as_dict()
    assert other["spec_decode_num_accepted_tokens"] != same["spec_decode_num_accepted_tokens"]


WRONG_DRAFTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"acceptance": None}, "nothing says which drafts are accepted"),
    ({}, {"synthetic_acceptance_rates": [0.5, 0.4, 0.3]}, "two keys say which drafts are accepted"),
    ({}, {"acceptance": [0.5, 0.5]}, "2 numbers for 3 drafts"),
    ({}, {"acceptance": 1.5}, "acceptance"),
    ({}, {"acceptance": None, "synthetic_acceptance_rates": [0.5, 0.6, 0.1]}, "the shares cannot grow"),
    ({}, {"num_speculative_tokens": 0}, "num_speculative_tokens"),
    ({}, {"method": "medusa"}, "'medusa' does not fit"),
    ({}, {"source": None}, "source"),
    ({}, {"method": "eagle"}, "how much is left is not known"),
    ({}, {"draft": None}, r"h200/opt-13b-tp1 has no cost speculation\.draft"),
    ({}, {"draft": {}}, "either seconds or a device"),
    ({}, {"draft": {"seconds": 0.001}}, "nothing says where the seconds come from"),
    ({}, {"draft": {"device": "gpu0"}}, "no model drafts them whose times a device has"),
    ({"blocks": 1000}, {"draft": {"device": "small"}, "method": "draft_model"}, "there is no device 'small'"),
    ({"enable_prefix_caching": True, "kv_offloading": {"gib": 1.0}}, {}, "where tokens are drafted is not known"),
    ({"preemption": "swap"}, {}, "what that does where tokens are drafted is not known"),
    ({"asynchronous": True}, {}, "vLLM has no asynchronous scheduling where drafts come from ngram"),
    ({"asynchronous": True, "blocks": 9}, {"method": "eagle"}, "with drafts from eagle, and it is not modelled here"),
    ({"asynchronous": True, "blocks": 9}, {"method": "draft_model"}, "where vLLM has it off as well"),
    ({"headroom": 1}, {}, "what that does where tokens are drafted is not known"),
    ({"max_batched_tokens": 200}, {}, "64 requests with 3 drafts each may run, but a step has 200 tokens"),
]


@pytest.mark.parametrize(("engine", "config", "says"), WRONG_DRAFTS)
def test_drafts_that_do_not_fit_are_refused(
    engine: dict[str, Any], config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        build.build(drafts(tmp_path, engine=engine, **config))


def test_drafts_need_a_policy_a_profile_and_an_engine_that_know_them(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neustream-llm does not reckon with several tokens a step"):
        build.build(drafts(tmp_path, ("policy.name", "neustream-llm")))
    with pytest.raises(BadInput, match="nobody measured steps of a6000/opt-13b-tp1"):
        build.build(experiment(tmp_path, DRAFTS, ("deployment.workers.0.limit", 64)))
    with pytest.raises(BadInput, match="this profile's does not"):
        build.build(drafts(tmp_path, AHEAD, engine={"blocks": 900}, method="eagle"))
    with pytest.raises(BadInput, match="an explanation knows nothing of speculative_config"):
        Alone(drafts(tmp_path))


def test_drafts_by_n_grams_turn_asynchronous_scheduling_off_as_vllm_does(tmp_path: Path) -> None:
    """The profile's engine has it, the experiment says nothing; the run says that it is off."""
    made = drafts(tmp_path, AHEAD, engine={"enable_prefix_caching": True})
    worker = build.build(made).loop.workers[0]
    assert worker.host is None  # type: ignore[attr-defined]
    said = "drafts: asynchronous scheduling is off, as vLLM sets it where they come from ngram"
    assert said in build.stands_on(made)
    assert said not in build.stands_on(drafts(tmp_path, AHEAD, engine={"asynchronous": False}))
    model = drafts(tmp_path, AHEAD, engine={"blocks": 900}, method="draft_model")
    assert f"{said.removesuffix('ngram')}draft_model and it is not asked for" in build.stands_on(model)
    assert said not in build.stands_on(drafts(tmp_path))


def test_a_head_that_reads_states_computes_the_last_block_anew(tmp_path: Path) -> None:
    """Of the 64 tokens that all have, who comes later finds four blocks of 16; with eagle three."""
    shared = ("workload.lengths.llm.prefix", {"draw": "shared", "tokens": 64})
    rare = ("workload.arrivals.rate", 0.01)
    for method, found in (("ngram", 64), ("draft_model", 64), ("eagle", 48)):
        own = {"enable_prefix_caching": True, "blocks": 1000}
        visits = visits_of(drafts(tmp_path, shared, rare, engine=own, method=method), tmp_path / method)
        assert {visit["cached"] for visit in visits[1:] if visit["prompt"] > 64} == {found}


# -- KV in host memory --------------------------------------------------------------------------------------

HOST: dict[str, Any] = {
    "enable_prefix_caching": True,
    "kv_offloading": {"gib": 8.0, "gb_per_s": 10.0, "latency": 0.002, "source": "assumed"},
}


def hosted(folder: Path, *set_: tuple[str, Any], **offloading: Any) -> Experiment:
    """An engine with few blocks, and more in host memory, with other settings of that."""
    own = {**HOST, "kv_offloading": {**HOST["kv_offloading"], **offloading}}
    prompts = {"draw": "constant", "tokens": 400}
    shared = {"draw": "shared", "groups": 10, "tokens": 320}
    lengths = (
        "workload.lengths.llm",
        {"prompt": prompts, "output": {"draw": "constant", "tokens": 5}, "prefix": shared},
    )
    blocks = ("deployment.workers.0.engine.blocks", 60)
    return experiment(folder, own, lengths, blocks, ("workload.requests", 60), *set_)


@pytest.mark.parametrize("ahead", [False, True])
def test_blocks_come_back_at_the_stated_bandwidth(ahead: bool, tmp_path: Path) -> None:
    """The run is one without cost, plus what its loads take: requests come one by one."""
    more = (("workload.arrivals.rate", 0.01), ("deployment.workers.0.engine.asynchronous", ahead))
    slow, free = (
        build.run(hosted(tmp_path, *more, **times)).as_dict() for times in ({}, {"gb_per_s": 1e9, "latency": 0.0})
    )
    assert slow["prefix_cache_hits_on_host"] == free["prefix_cache_hits_on_host"] > 0
    lines = visits_of(hosted(tmp_path, *more), tmp_path / "run")
    loads = [visit["cached_on_host"] for visit in lines if visit.get("cached_on_host")]
    seconds = sum(0.002 + tokens * BYTES / 10e9 for tokens in loads)
    assert (slow["mean_ttft_ms"] - free["mean_ttft_ms"]) * 60 / 1000 == pytest.approx(seconds, rel=1e-5)


def visits_of(made: Experiment, folder: Path) -> list[dict[str, Any]]:
    build.run(made, folder)
    return [json.loads(line)["stages"][0] for line in (folder / "requests.jsonl").read_text().splitlines()]


def test_half_the_bytes_are_twice_the_blocks(tmp_path: Path) -> None:
    blocks = [
        build.build(experiment(tmp_path, engine)).loop.workers[0].view.limits.host_blocks  # type: ignore[attr-defined]
        for engine in (HOST, {**FP8, **HOST})
    ]
    assert blocks[0] == int(8 * 2**30 // (16 * BYTES))
    assert blocks[1] in (2 * blocks[0], 2 * blocks[0] + 1)


WRONG_HOSTS: list[tuple[dict[str, Any], str]] = [
    ({**HOST, "enable_prefix_caching": False}, "found by its content, as prefixes are"),
    ({**HOST, "kv_offloading": {"gib": 8.0}}, r"a6000/opt-13b-tp1 has no cost kv\.swap"),
    ({**HOST, "kv_offloading": {"gib": 8.0, "gb_per_s": 10.0}}, "nothing says where the bandwidth comes from"),
    ({**HOST, "kv_offloading": {**HOST["kv_offloading"], "gib": 1e-6}}, "hold no KV block of 16 tokens"),
    ({**HOST, "kv_offloading": {**HOST["kv_offloading"], "gib": 0.0}}, "kv_offloading.gib"),
    ({**FP8, **HOST, "kv_offloading": {"gib": 8.0}}, "what moving blocks of KV in fp8 takes is not known"),
    ({**HOST, "kv_offloading_size": 8.0}, "kv_offloading: {gib: ...}"),
]


@pytest.mark.parametrize(("engine", "says"), WRONG_HOSTS)
def test_hosts_that_do_not_fit_are_refused(engine: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        build.build(experiment(tmp_path, engine))


# -- LoRA adapters ------------------------------------------------------------------------------------------

LORA: dict[str, Any] = {
    "max_loras": 1,
    "adapters": {"chat": "chat-lora", "code": "code-lora"},
    "load_seconds": 0.05,
    "slowdown": 1.2,
    "source": "assumed",
}
CLASSES = {"chat": {"share": 1.0}, "code": {"share": 1.0}, "plain": {"share": 1.0}}


def adapted(
    folder: Path, *set_: tuple[str, Any], engine: dict[str, Any] | None = None, device: str = A6000, **lora: Any
) -> Experiment:
    """An engine with adapters for two of three classes, with other settings of these."""
    own = {**(engine or {}), "lora": {**LORA, **lora}}
    return experiment(folder, own, *set_, device=device, classes=CLASSES)


def test_steps_take_longer_and_adapters_are_loaded(tmp_path: Path) -> None:
    one = ("workload.requests", 1)
    made, free = (adapted(tmp_path, one), experiment(tmp_path, {}, one, classes=CLASSES))
    visit, plain = visits_of(made, tmp_path / "a")[0], visits_of(free, tmp_path / "b")[0]
    assert visit["adapter_loads"] == (visit["adapter"] is not None)
    took, alone = (v["last_token"] - v["arrival"] for v in (visit, plain))
    assert took == pytest.approx(1.2 * alone + 0.05 * visit["adapter_loads"])
    assert build.run(adapted(tmp_path, one, ("time.costs", False))).as_dict()["mean_e2el_ms"] == pytest.approx(
        1200 * alone
    )


def test_classes_have_their_adapters_and_one_runs_at_a_time(tmp_path: Path) -> None:
    visits = visits_of(adapted(tmp_path, ("rate", 20.0)), tmp_path / "run")
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    classes = [json.loads(line)["class"] for line in lines]
    assert [v["adapter"] for v in visits] == [LORA["adapters"].get(name) for name in classes]
    spans = [(v["started"], v["last_token"], v["adapter"]) for v in visits if v["adapter"]]
    assert len({adapter for _, _, adapter in spans}) == 2
    for begin, end, adapter in spans:
        assert not [a for b, e, a in spans if a != adapter and b < end and begin < e]


WRONG_LORA: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"max_loras": 0}, "max_loras"),
    ({}, {"adapters": {"cht": "chat-lora"}}, "there is no class 'cht'"),
    ({}, {"adapters": {}}, "adapters"),
    ({}, {"source": None}, "nothing says where the numbers come from"),
    ({}, {"load_seconds": None}, r"a6000/opt-13b-tp1 has no cost lora\.load"),
    ({}, {"slowdown": None}, r"a6000/opt-13b-tp1 has no cost lora\.slowdown"),
    ({}, {"slowdown": 0.0}, "slowdown"),
    ({"keep_freed": True}, {}, "what that does with adapters is not known"),
    (HOST, {}, "what that does with adapters is not known"),
    ({"preemption": "swap"}, {}, "what that does with adapters is not known"),
    ({"enable_lora": True}, {}, "vLLM's enable_lora is not modelled"),
    ({"max_loras": 2}, {}, "max_loras: ..."),
]


@pytest.mark.parametrize(("engine", "lora", "says"), WRONG_LORA)
def test_adapters_that_do_not_fit_are_refused(
    engine: dict[str, Any], lora: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        build.build(adapted(tmp_path, engine=engine, **lora))


def test_adapters_with_vllms_defaults_as_they_are(tmp_path: Path) -> None:
    """Asynchronous scheduling, by the profile, and the prefix cache: prompts are found by adapter."""
    shared = ("workload.lengths.llm.prefix", {"draw": "shared", "tokens": 64})
    vllm = {"headroom": 0, "stamp": "sent", "enable_prefix_caching": True}
    made = adapted(tmp_path, shared, engine=vllm, device=AHEAD[1], max_loras=2)
    assert build.build(made).loop.workers[0].host is not None  # type: ignore[attr-defined]
    visits = visits_of(made, tmp_path / "run")
    first = {
        adapter: next(v for v in visits if v["adapter"] == adapter) for adapter in {v["adapter"] for v in visits}
    }
    assert len(first) == 3
    assert all(v["cached"] == 0 for v in first.values())
    assert sum(v["cached"] == 64 for v in visits) > len(visits) / 2


def test_adapters_and_drafts_go_together(tmp_path: Path) -> None:
    """Verifying takes as much longer as all steps with adapters; making drafts takes what it took."""
    own = ("deployment.workers.0.engine.lora", {**LORA, "load_seconds": 0.0, "adapters": {"chat": "chat-lora"}})
    classes = ("workload.classes", {"chat": {"share": 1}})
    one = ("workload.requests", 1)
    free = {"seconds": 0.0, "source": "nothing"}
    both, lora, drafted, plain = (
        build.run(drafts(tmp_path, one, classes, *more, **draft)).as_dict()
        for more in ([own], [])
        for draft in ({}, {"draft": free})
    )
    assert both["mean_acceptance_length"] == plain["mean_acceptance_length"] > 1.0
    made = {name: run["mean_e2el_ms"] for name, run in zip("bldp", (both, lora, drafted, plain), strict=True)}
    assert made["b"] - made["l"] == pytest.approx(made["d"] - made["p"])
    steps = both["spec_decode_num_drafts"] + 1
    pauses = 1000.0 * profile(H200).tokens("measured").between(1) * steps
    assert made["l"] - made["p"] == pytest.approx(0.2 * (made["p"] - pauses), rel=0.01)
    assert (both["adapter_loads"], both["spec_decode_num_draft_tokens"]) == (1, 3 * (steps - 1))


def test_adapters_need_classes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no class 'chat'"):
        experiment(tmp_path, {"lora": LORA})
    with pytest.raises(BadInput, match="an explanation knows nothing of lora"):
        Alone(adapted(tmp_path))


# -- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda at: experiment(at, FP8), "fp8_attention"),
        (drafts, "speculative_config"),
        (hosted, "kv_offloading"),
        (adapted, "lora"),
    ],
)
def test_runs_say_what_they_stand_on_and_nothing_else_takes_them(make: Any, key: str, tmp_path: Path) -> None:
    made = make(tmp_path)
    assert any("assumed" in line for line in build.run(made).as_dict()["basis"])
    assert any("assumed" in line for line in build.stands_on(made))
    assert any(key in word for word in of_experiment(made).special)
    with pytest.raises(BadInput, match="the bound knows nothing of"):
        most_met(made)
    with pytest.raises(BadInput, match="the real side knows nothing of"):
        Plan(made, diffusion=False)


def test_runs_say_how_many_blocks_there_are_and_who_is_passed_over(tmp_path: Path) -> None:
    said = build.stands_on(experiment(tmp_path, {**FP8, **HOST}))
    assert said[:3] == [
        "KV in fp8: 2806 blocks of 16 tokens, twice as many as in 16 bits (1403)",
        "KV in fp8: attention to tokens before takes 0.5 times as long in decoding and 1 times for prompts: assumed",
        f"KV in host memory: {int(8 * 2**30 // (8 * BYTES))} blocks of 16 tokens in 8 GiB",
    ]
    assert "as the experiment gives them" in build.stands_on(experiment(tmp_path, {**FP8, "blocks": 100}))[0]
    rule = "does not pass over requests that wait for an adapter just as vLLM does; vllm-v1 does"
    assert build.stands_on(adapted(tmp_path, ("policy.name", "sarathi")))[-1] == f"adapters: sarathi {rule}"
    assert not any(rule in line for line in build.stands_on(adapted(tmp_path)))


def test_that_nothing_was_found_on_the_host_is_said(servetwin: Any, tmp_path: Path) -> None:
    hosted(tmp_path, ("workload.requests", 2))
    keys = ("--set", "workload.requests=2", "--set", "deployment.workers.0.engine.blocks=60")
    code, out, err = servetwin("run", tmp_path / "own.yaml", *keys)
    assert code == 0, err
    assert "  of that 0.0 points, 0 tokens, in host memory alone" in out.splitlines()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda folder: drafts(folder), "speculative_config"),
        (lambda folder: adapted(folder), "lora"),
        (lambda folder: hosted(folder), "kv_offloading"),
        (lambda folder: experiment(folder, {**FP8, "headroom": 0, "stamp": "sent"}), None),
    ],
)
def test_runs_whose_steps_do_not_tell_are_not_explained(
    servetwin: Any, make: Any, key: str | None, tmp_path: Path
) -> None:
    """Nor are they where the experiment cannot be loaded any more."""
    run = tmp_path / "run"
    build.run(make(tmp_path), run)
    code, out, err = servetwin("explain", run, "--request", 0)
    if key is None:
        assert code == 0
        assert "served alone" in out
        return
    says = f"engine.{key}: an explanation knows nothing of {key} (right would be: a run without it)"
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    meta = json.loads((run / "meta.json").read_text())
    meta["experiment"]["policy"]["name"] = "of-another-day"
    (run / "meta.json").write_text(json.dumps(meta))
    code, out, err = servetwin("explain", run)
    assert (code, out) == (2, "")
    assert says in err


def test_costs_that_are_off_are_not_told_as_if_they_were_charged(tmp_path: Path) -> None:
    off = ("time.costs", False)
    said = {key: build.stands_on(make(tmp_path, off)) for key, make in (("host", hosted), ("lora", adapted))}
    assert "KV comes back from the host in no time (time.costs: false)" in said["host"]
    assert (
        "adapters: loading one takes no time (time.costs: false), steps take 1.2 times as long: assumed"
        in said["lora"]
    )
    assert not any("GB/s" in line for line in said["host"])
    told = build.stands_on(hosted(tmp_path)) + build.stands_on(adapted(tmp_path))
    assert "KV comes back from the host at 10 GB/s, after 0.002 s: assumed" in told
    assert "adapters: loading one takes 0.05 s, steps take 1.2 times as long: assumed" in told


def test_files_say_nothing_of_options_that_are_off(tmp_path: Path) -> None:
    said = experiment(tmp_path, {}).as_dict()["deployment"]["workers"][0]["engine"]
    assert not set(said) & set(OPTIONS)
    assert engine_options.stands_on(experiment(tmp_path, {})) == []
    whole = experiment(tmp_path, FP8).as_dict()
    assert whole["deployment"]["workers"][0]["engine"]["kv_cache_dtype"] == "fp8"
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert load(path) == experiment(tmp_path, FP8)
