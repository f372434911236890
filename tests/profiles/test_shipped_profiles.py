"""The profiles that come with ServeTwin, used as the rest of it uses them."""

from __future__ import annotations

import doctest
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import servetwin.profiles
from servetwin.core import BadInput, FactorSLO, Module, Pipeline, WorkerView
from servetwin.profiles import OutOfRange, load, names, profile, verdict
from servetwin.profiles.llm import architectures, step_table
from servetwin.profiles.neustream_artifact import diffusion, restate
from servetwin.profiles.profile import DATA
from servetwin.profiles.tables import latency_table

SD = ("clip", "unet", "vae", "safety")
MODULES = {
    "rtx4090/dit-s2-256": ("dit", "vae"),
    "rtx4090/dit-xl2-256": ("dit", "vae"),
    "rtx4090/palette-256": ("unet",),
    "rtx4090/sd15-256": SD,
    "rtx4090/sd15-512": SD,
    "h100/sd15-512": SD,
}
SYNTHETIC = (
    "synthetic/captioner",
    *(f"synthetic/sdxl-{name}" for name in ("actions", "cascade", "refiner", "shapes")),
)
MLPERF = ("mlperf/sdxl-gh200", "mlperf/sdxl-h100")
AGENTS = ("rtx4090/codellama-7b", "rtx4090/llava-1.5-7b")
OPT = ("a6000/opt-13b-tp1", "a6000/opt-30b-tp2", "a6000/opt-66b-tp4")
#: What `tests/real/vllm/campaign.py` and `pair_campaign.py` measured.
OPT_VLLM = (
    "h100/opt-13b-tp1",
    "h100/opt-13b-tp1-eager",
    "h100-async/opt-13b-tp1",
    "h100-knees/opt-13b-tp1",
    "h100-knees/opt-30b-tp1",
    *(f"h100-long/opt-13b-tp1-{k}" for k in range(4)),
    "cpu/tiny-opt",
    "h200/codellama-7b",
    "h200/opt-13b-tp1",
    "h200/opt-30b-tp1",
    *(f"h200-long/opt-13b-tp1-{k}" for k in range(4)),
    "h200-long/opt-30b-tp1",
    "h200-long/opt-66b-tp2",
    "h200-cached/llama-3.1-8b",
    "h200-chat/llama-3.1-8b",
    "h200-chat/opt-13b",
    "h200-lengths/llama-3.1-8b",
    "h200-lengths/opt-13b",
    "h200-policies/opt-13b",
    "h200-prefix/llama-3.1-8b",
    "h200-prefix/llama-3.1-8b-served",
    "h200-full/llama-3.1-8b",
    "h200-full/llama-3.1-8b-caching",
    "h200-full/opt-13b",
    "h200-requests/llama-3.1-8b",
    "h200-requests/llama-3.1-8b-caching",
    "h200-servers/llama-3.1-8b",
    "h200-servers/qwen3-30b-a3b",
    "h200-steps/llama-3.1-8b",
    "h200-steps/opt-13b",
)
#: What `servetwin profile` measured.
OURS = {
    "cpu/tiny-sd": SD,
    "cpu/tiny-dit": ("dit", "vae"),
    "cpu/tiny-palette": ("unet",),
    **{
        f"{device}/{model}-graphs": modules
        for device in ("h100", "h100-again", "h100-quiet", "h200")
        for model, modules in {
            "dit-s2-256": ("dit", "vae"),
            "dit-xl2-256": ("dit", "vae"),
            "palette-256": ("unet",),
            "sd15-256": SD,
            "sd15-512": SD,
        }.items()
    },
    "h100-arrivals/dit-s2-256-graphs": ("dit", "vae"),
    "h200-again/palette-256-graphs": ("unet",),
    "h200-compiled/dit-xl2-256-graphs": ("dit", "vae"),
    "h200-compiled/sd15-512-graphs": SD,
    "h200-compiled-whole/sd15-512-graphs": SD,
    "h200-policies/dit-s2-256-graphs": ("dit", "vae"),
    "h200-policies/sd15-256-graphs": SD,
    "h200-quiet/dit-s2-256-graphs": ("dit", "vae"),
    "h200-quiet/palette-256-graphs": ("unet",),
    "h200-unquiet/dit-s2-256-graphs": ("dit", "vae"),
    "h200-again/sd15-256-graphs": SD,
    "h200-again/sd15-512-graphs": SD,
    **{f"h200-pair/dit-xl2-256-gpu{k}": ("dit", "vae") for k in (0, 1)},
    **{f"h200-pair/sd15-512-gpu{k}": SD for k in (0, 1)},
    "h200-shapes/sdxl-1024-graphs": ("clip", "clip2", "unet", "vae"),
    "h200-shapes/flux1-dev-1024-graphs": ("clip", "t5", "transformer", "vae"),
    "h200-shapes/sdxl-1024-rest": ("clip", "clip2", "unet", "vae"),
    "h200-shapes/flux1-dev-1024-rest": ("clip", "t5", "transformer", "vae"),
}


#: Made by `servetwin import` of what others measured. Llama-3.1-70B fits on no single one of these devices.
IMPORTED = [
    "rtx4090/llama-3.1-8b-tp1-imported",
    "rtxpro6000/llama-3.1-8b-tp1-imported",
    "a100/opt-13b-tp1-imported",
    "a100/opt-13b-tp1-vllm-imported",
    *(
        f"{device}-imported"
        for device in ("a100/bloom-176b-tp8", "h100/bloom-176b-tp8", "h100/bloom-176b-tp8-capped")
    ),
    *(
        f"{device}/{model}-tp{devices}-imported"
        for device in ("a100", "h100", "h200")
        for model in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b")
        for devices in (1, 2, 4, 8)
        if (model, devices) != ("llama-3.1-70b", 1)
    ),
]
#: By a formula, of what others published; `tests/profiles/test_degrees.py` makes each number again.
ESTIMATED = ["h100/flux1-dev-by-degree"]


@pytest.mark.parametrize(
    "module", [servetwin.profiles, profile, latency_table, step_table, architectures], ids=lambda m: str(m.__name__)
)
def test_the_examples_in_the_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_the_names() -> None:
    assert names() == sorted([*MODULES, *OPT, *AGENTS, *OPT_VLLM, *OURS, *SYNTHETIC, *MLPERF, *IMPORTED, *ESTIMATED])
    for name in names():
        assert load(name).name == name
        assert (verdict.origin(load(name).data) == "synthetic") == (name in SYNTHETIC)


@pytest.mark.parametrize("name", IMPORTED)
def test_imported_profiles_say_so_and_serve_as_others_do(name: str) -> None:
    data = load(name).data
    assert data.basis is not None
    assert data.basis.kind == "imported"
    assert "%" in data.basis.known_error
    table = load(name).tokens("measured")
    assert 0.001 < table.decode(1, 100) < table.decode(64, 64 * 1000) < 0.3
    assert table.prefill(100) < table.prefill(2000)
    assert table.mixed(512, 512.0**2, 0.0, 32, 32000) > table.prefill(512)
    kv = data.tokens.kv
    assert kv.memory_gib is None or kv.blocks == data.tokens.blocks(max_batched_tokens=None, max_sequences=None)


def test_an_unknown_name_is_told_with_those_that_look_like_it() -> None:
    with pytest.raises(BadInput) as error:
        load("rtx4090/sdxl")
    listed = f"one of the {len(names())} that `servetwin profiles` lists, or a path to a YAML or CSV file of your own"
    assert str(error.value).startswith(f"unknown profile 'rtx4090/sdxl' (right would be: {listed}; rtx4090/")
    assert str(error.value).endswith(" look like it)")
    with pytest.raises(BadInput) as error:
        load(".nan")
    assert str(error.value) == f"unknown profile '.nan' (right would be: {listed})"
    with pytest.raises(BadInput, match=r"nobody has measured dit-s2-256 on a100 yet .*rtx4090/dit-s2-256, or"):
        load("a100/dit-s2-256")
    with pytest.raises(BadInput, match=r"unknown profile 'h100/dit-s2-256' .*: one of h100/dit-s2-256-graphs, or"):
        load("h100/dit-s2-256")
    for name in ("../data/rtx4090/sd15-512", "rtx4090", ""):
        with pytest.raises(BadInput, match="unknown profile"):
            load(name)


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_those_of_the_pipeline(name: str) -> None:
    p = load(name)
    assert p.modules == MODULES[name]
    assert [m for m in p.modules if p.is_loop(m)] == ["dit" if "dit" in name else "unet"]
    with pytest.raises(BadInput, match=rf"{name}: no module 'text' \(right would be: {', '.join(p.modules)}\)"):
        p.table("text")


@pytest.mark.parametrize("name", MODULES)
def test_provenance(name: str) -> None:
    data = load(name).data
    assert data.origin.licence == "MIT"
    assert data.precision == "fp16"
    assert data.batch_counts.startswith("requests")
    for module in data.modules.values():
        assert module.rows_per_request == (2 if module.loop and "palette" not in name else 1)
        for t in module.tables.values():
            assert t.source.line or t.source.name
    for cost in data.costs.values():
        assert cost.source.file


def test_a_view_takes_its_estimate_from_a_profile() -> None:
    p = load("rtx4090/dit-s2-256")
    stages = Pipeline.chain(Module("dit", loop=True), Module("vae")).stages([["dit"], ["vae"]])
    view = WorkerView(stages[0], p.estimate(), limit=20)
    assert view.estimate("dit", 20) == p.table("dit", "scheduler")(20) == 0.01580424864217639
    with pytest.raises(OutOfRange, match=r"rtx4090/dit-s2-256 vae \(scheduler\): no value for a batch of 11 "):
        view.estimate("vae", 11)
    assert p.estimate(hold=True)("vae", 11) == p.table("vae")(10)
    assert p.estimate() is p.estimate("scheduler")
    with pytest.raises(BadInput, match="no module 'clip'"):
        p.estimate()("clip", 1)


def test_an_slo_is_a_multiple_of_the_solo_latency() -> None:
    p = load("rtx4090/dit-xl2-256")
    ours = FactorSLO(3.0, p.solo("slo"), p.seconds("slo_constant"))
    clockworks = FactorSLO(3.0, p.solo("clockwork_slo"), p.seconds("slo_constant"))
    assert ours.seconds({"dit": 200}) == pytest.approx(3 * (0.0015012567 + 200 * 0.0176040996 + 0.0179474863))
    assert clockworks.seconds({"dit": 200}) / ours.seconds({"dit": 200}) == pytest.approx(1.12, abs=0.005)


def test_clockwork_and_slo_fall_back_to_the_scheduler_where_they_are_the_same() -> None:
    xl = load("rtx4090/dit-xl2-256")
    assert xl.table("dit", "clockwork")(1) == 0.01972036121785641
    assert xl.table("dit", "clockwork") == xl.table("dit", "clockwork_slo")
    assert xl.table("vae", "slo")(1) == 0.017947486291329067
    assert xl.table("vae", "clockwork_slo")(1) == 0.016486729375230016
    assert xl.table("dit", "slo") == xl.table("dit", "scheduler")
    assert not xl.has("dit", "slo")
    s = load("rtx4090/dit-s2-256")
    assert s.table("dit", "clockwork") == s.table("dit", "slo") == s.table("dit")


def test_what_was_measured_never_falls_back_unasked() -> None:
    xl = load("rtx4090/dit-xl2-256")
    with pytest.raises(
        BadInput, match=r"module vae has no table measured \(right would be: scheduler or slo or clockw"
    ):
        xl.table("vae", "measured")
    assert xl.table("vae", "measured", "scheduler") == xl.table("vae", "scheduler")
    assert xl.table("dit", "measured", "scheduler").largest == 8
    assert xl.estimate("measured", "scheduler")("vae", 1) == xl.table("vae")(1)


def test_h100_has_tables_and_nothing_else() -> None:
    h100, rtx = load("h100/sd15-512"), load("rtx4090/sd15-512")
    assert "No logs of any run exist" in str(h100.data.limits_of_data)
    assert not h100.costs
    for module in SD:
        assert not h100.has(module, "measured")
        mixed_up = module != "clip"
        assert h100.has(module, "clockwork") == mixed_up
        if mixed_up:
            assert h100.table(module, "clockwork") == rtx.table(module, "scheduler")
        assert h100.table(module, "clockwork_slo") == h100.table(module, "scheduler")


def test_the_slo_of_sd_512_is_the_one_that_the_logs_follow() -> None:
    sd = load("rtx4090/sd15-512")
    assert sd.table("unet", "slo")(1) == 0.029338991034390603
    assert sd.table("unet", "slo_committed")(1) == 0.027626497071966453


@pytest.mark.parametrize("name", MODULES)
def test_tables_of_logs_say_how_many_samples_they_rest_on(name: str) -> None:
    for module in load(name).data.modules.values():
        for kind in {"measured", "all", "leaves", "starts", "overlaps", "self_profile"} & module.tables.keys():
            t = module.tables[kind]  # type: ignore[index]
            assert t.samples is not None
            assert min(t.samples) >= 1
            assert t.spread
        if "inferred" in module.tables:
            assert module.tables["inferred"].observed_seconds


@pytest.mark.parametrize("name", MODULES)
def test_costs(name: str) -> None:
    p = load(name)
    for cost_name, cost in p.costs.items():
        if cost.quantiles:
            assert cost.quantile(0.05) <= cost.quantile(0.5) <= cost.quantile(0.95)
        if cost.by_batch:
            assert p.cost_table(cost_name)(1) >= 0
        if cost.value is not None:
            assert 0 <= cost.value < 2
    if "sd15" in name and "rtx" in name:
        assert p.cost("last_stage").modules == ("vae", "safety")
        assert p.cost("last_stage").upto(2)[2] > p.table("vae")(2) + p.table("safety")(2) - 0.02
        assert 0.9 < p.seconds("clockwork_ratio") < 1.0


@pytest.mark.parametrize("name", OURS)
def test_what_was_measured_here_says_how(name: str) -> None:
    p = load(name)
    assert p.modules == OURS[name]
    assert "this one; " in p.data.origin.repository  # and by which command
    assert "torch" in str(p.data.limits_of_data)
    (loop,) = (m for m in p.modules if p.is_loop(m))
    assert p.has(loop, "measured")
    assert p.table(loop, "measured").smallest == 1
    assert f"{loop}.join" in p.costs
    assert "whole.ratio" in p.costs


@pytest.mark.parametrize("name", [*MODULES, *OURS])
def test_a_profile_travels_to_another_process(name: str) -> None:
    p = load(name)
    p.estimate()(p.modules[0], 1)
    back = pickle.loads(pickle.dumps(p))
    assert back == p
    assert back.digest == p.digest
    assert back.estimate()(p.modules[0], 1) == p.estimate()(p.modules[0], 1)


def test_digests_differ_from_profile_to_profile() -> None:
    assert len({load(name).digest for name in names()}) == len(names())


def test_a_profile_loads_in_no_time() -> None:
    profile._load.cache_clear()
    took = []
    for _ in range(3):
        began = time.process_time()
        load("rtx4090/sd15-256")
        took.append(time.process_time() - began)
        profile._load.cache_clear()
    assert min(took) < 0.1  # 5 ms on a desktop; the bound leaves room for a YAML reader without libyaml


@pytest.mark.reference
def test_the_shipped_files_are_the_regenerated_ones(reference: Path, tmp_path: Path) -> None:
    written = restate.restate(reference, tmp_path)
    assert sorted(p.relative_to(tmp_path) for p in written) == sorted(
        Path(f"{n}.yaml") for n in [*MODULES, *OPT, *AGENTS]
    )
    for path in written:
        assert path.read_bytes() == (DATA / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.reference
def test_every_number_is_that_of_the_reference(reference: Path) -> None:
    raw = json.loads((reference / "diffusion/latency_tables.json").read_text())
    for w in diffusion.WORKLOADS:
        p, used, logs = load(w.name), raw["used_by_code"][w.key], raw["measured_from_logs"][w.key]
        for ours, theirs in w.modules.items():
            clockwork = used["clockwork"].get(f"duration_{theirs}") or used["clockwork"][theirs]
            equal(p, ours, "scheduler", used["neustream_scheduler"][theirs]["table"])
            equal(p, ours, "slo", used["slo_base"][theirs]["table"])
            equal(p, ours, "clockwork", clockwork["table"])
        for theirs, kind in diffusion.PERIODS.items():
            rows = logs.get("iteration_period_s", {}).get(theirs, {})
            assert p.has(w.loop, kind) == bool(rows)  # type: ignore[arg-type]
            if rows:
                equal(p, w.loop, kind, {n: row["mean"] for n, row in rows.items()})
        assert p.seconds("slo_constant", 0.0) == used["slo_base"].get("init_s", 0.0)
        for theirs, (name, _, _) in diffusion.DELAYS.items():
            if theirs in logs.get("stage_delays_s", {}):
                assert p.seconds(name) == logs["stage_delays_s"][theirs]["mean"]
                assert p.cost(name).quantile(0.5) == logs["stage_delays_s"][theirs]["median"]


def equal(p: servetwin.profiles.Profile, module: str, kind: Any, theirs: dict[str, float]) -> None:
    t = p.table(module, kind)
    expected = {int(n): seconds for n, seconds in theirs.items()}
    assert dict(zip(t.sizes, t.values, strict=True)) == expected
    estimate = p.estimate(kind)
    assert all(estimate(module, n) == seconds for n, seconds in expected.items())


@pytest.mark.reference
def test_the_command_that_makes_them(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restate.main([str(reference), str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(".yaml\n") == len([*MODULES, *OPT, *AGENTS])


def test_the_command_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restate.main([]) == 2
    assert restate.main([str(tmp_path), str(tmp_path)]) == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert error.endswith("(right would be: a folder with diffusion/latency_tables.json)")


@pytest.mark.reference
@pytest.mark.parametrize("key", ["codellama", "llava"])
def test_every_number_of_the_agents_is_that_of_the_reference(reference: Path, key: str) -> None:
    raw = json.loads((reference / "multi-agent/latency_model.json").read_text())["models"][key]
    data = load(dict(zip(["codellama", "llava"], AGENTS, strict=True))[key]).token_data
    single = raw["prefill_single_table"]
    measured, scheduler = data.kinds["measured"], data.kinds["scheduler"]
    assert list(measured.prefill.tokens) == single["prompt_tokens"]
    assert list(measured.prefill.seconds[0]) == single["seconds"]
    assert scheduler.prefill.tokens[-1] == 2048
    assert list(scheduler.prefill.seconds[0]) == single["seconds"][:64]
    for model in (measured, scheduler):
        assert [model.prefill.beyond.c0, model.prefill.beyond.c1, model.prefill.beyond.c2] == raw["prefill_batch"][
            "c"
        ]
        assert [model.line.d0, model.line.d1] == raw["decode_step"]["d"]
    assert data.kv.blocks == raw["kv_cache"]["blocks"]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_what_is_synthetic_says_so(name: str) -> None:
    data = load(name).data
    assert "synthetic" in data.description
    assert data.limits_of_data == "every number is synthetic"
