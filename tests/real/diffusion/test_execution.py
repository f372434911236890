"""However a loop's network is executed, a request's latents are the same, alone and among others."""

import os
import shutil
import sys

import pytest
import torch
import yaml
from servetwin.core import BadInput, Request
from servetwin.experiments.backends.diffusion import Backend, Plan, Setup, check_execution, model_of
from servetwin.experiments.backends.profile import measure
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as read_profile
from servetwin.profiles.profile import DATA
from servetwin.real import Options, Server
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.execution import Execution, execution_of, in_words, options_of
from servetwin.real.diffusion.models import find

CPU = torch.device("cpu")
STEPS = 4


@torch.no_grad()
def latents(name, limit=2, **options):
    """Of two requests with other steps each: alone, and in one batch that lets them go one by one."""
    slots = DeviceSlots(find(name), Options.of({"device": "cpu", "slots": 4, **options}), CPU)
    for module in slots.kind.modules[: slots.kind.modules.index(slots.kind.loop) + 1]:
        slots.warm(module, limit)
    slots.reset()
    made = {}
    for group in ([0], [1], [0, 1])[: limit + 1]:
        batch = [slots.take(Request(n, 0.0, 1.0, {slots.kind.loop: STEPS + n})) for n in group]
        if "clip" in slots.kind.modules:
            slots.once("clip", batch)
        for n, progress in zip(group, batch, strict=True):
            slots.begin(progress, STEPS + n)
        while batch:
            slots.step(batch)
            for progress in [p for p in batch if p.done == len(p.rows)]:
                batch.remove(progress)
                made[len(group), progress.request] = slots.model.state["latents"][progress.slot].clone()
                slots.release(progress.request)
    return made


def close(a, b):
    return float((a - b).abs().max()) <= 2e-5 * max(1.0, float(b.abs().max()))


@pytest.fixture
def traced_only():
    """Networks are traced as for compiling, batch by batch, but no compiler makes kernels of them."""
    torch.compiler.reset()
    torch.compiler.set_default_backend("eager")
    yield
    torch.compiler.set_default_backend("inductor")
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-dit", "tiny-palette"])
def test_layout_and_fused_projections_change_no_result(name):
    plain = latents(name)
    for options in ({"channels_last": True}, {"fused_projections": True}):
        made = latents(name, **options)
        assert made.keys() == plain.keys()
        assert all(close(made[key], plain[1, key[1]]) for key in made)


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-dit"])
def test_traced_blocks_change_no_result_whoever_shares_the_batch(name, traced_only):
    plain = latents(name)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    made = latents(name, compile="blocks", channels_last=True, fused_projections=True)
    assert all(close(made[key], plain[1, key[1]]) for key in plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before  # something went through it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_changes_no_result(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    plain, made = latents("tiny-dit", 1), latents("tiny-dit", 1, compile="blocks")
    assert all(close(made[key], plain[key]) for key in plain)
    assert any(tmp_path.rglob("*.so"))  # what the compiler made is kept


def test_programs_are_kept_where_the_user_keeps_caches(tmp_path, monkeypatch, traced_only):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    DeviceSlots(find("tiny-dit"), Options(device="cpu", slots=1, compile="blocks"), CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "servetwin" / "torch")


def test_a_run_says_how_it_was_executed():
    server = Server("tiny-sd", Options(device="cpu", compile="blocks", compiled_sizes=(1, 2), channels_last=True))
    assert server.execution("gpu0").as_dict() == {
        "graphs": False, "compile": "blocks", "compiled_sizes": [1, 2], "channels_last": True,
    }  # fmt: skip
    words = "no CUDA graphs, compiled blocks (batch 1, 2 apart), channels last"
    assert str(server.execution("gpu0")) == in_words(server.execution("gpu0").as_dict()) == words
    assert str(Server("tiny-dit", Options(device="cpu", channels_last=True)).execution("gpu0")) == (
        "no CUDA graphs, not compiled"  # nothing in it could lie that way
    )
    assert str(Execution(True, attention="cudnn", fused_projections=True)) == (
        "CUDA graphs, not compiled, fused projections, cudnn attention"
    )


@pytest.mark.parametrize("compiled", [{}, {"compile": "blocks", "compiled_sizes": [2], "fused_projections": True}])
def test_what_is_said_comes_to_the_same_again(compiled):
    kind = find("tiny-sd")
    execution = execution_of(Options.of({"device": "cpu", "channels_last": True, **compiled}), kind, CPU)
    again = execution_of(Options.of({"device": "cpu", **options_of(execution.as_dict())}), kind, CPU)
    assert again == execution


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compile": True}, "the option compile: unknown word True (right would be: none or blocks or whole)"),
        ({"compile": "all"}, "the option compile: unknown word 'all'"),
        ({"attention": "fast"}, "the option attention: unknown word 'fast'"),
        ({"attention": "cudnn"}, "the option attention: cudnn attention is one of GPUs"),
        ({"compile": "whole", "compiled_sizes": [0]}, "the option compiled_sizes: [0] are no batch sizes"),
        ({"compiled_sizes": [2]}, "the option compiled_sizes: nothing is compiled"),
        ({"mode": "max-autotune-no-cudagraphs"}, "the option mode: nothing is compiled"),
    ],
)
def test_what_does_not_fit_is_refused(options, says):
    with pytest.raises(BadInput) as refused:
        Server("tiny-dit", Options.of({"device": "cpu", **options})).execution("gpu0")
    assert says in str(refused.value)


EXPERIMENT = """
extends: tiny-dit-cpu
deployment: {devices: {gpu0: %s}}
workload: {requests: 2}
"""


def profiled(folder, execution):
    """An experiment whose profile says that it was measured with this *execution*."""
    content = yaml.safe_load((DATA / "cpu/tiny-dit.yaml").read_text())
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**content, **({"execution": execution} if execution else {})}))
    file = folder / "experiment.yaml"
    file.write_text(EXPERIMENT % path)
    return load(file)


def as_served(experiment, **setup):
    backend = Backend(Setup(devices=("cpu",), **setup))
    plan = Plan(experiment)
    server = backend._planned(plan, model_of(plan, None))
    check_execution(plan.profiles, server)
    return str(server.execution("gpu0"))


def test_a_run_does_as_its_profile_was_measured(tmp_path):
    blocks = {"graphs": False, "compile": "blocks", "compiled_sizes": [2], "fused_projections": True}
    assert as_served(profiled(tmp_path, blocks)) == (
        "no CUDA graphs, compiled blocks (batch 2 apart), fused projections"
    )
    assert as_served(profiled(tmp_path, None)) == "no CUDA graphs, not compiled"


@pytest.mark.parametrize(
    ("execution", "compiled", "says"),
    [
        ({"graphs": False, "compile": "none"}, "whole", "not compiled, but gpu0 would run with no CUDA graphs, comp"),
        (
            {"graphs": False, "compile": "blocks", "compiled_sizes": [1]},
            "none",
            "compiled blocks (batch 1 apart), but",
        ),
        (
            {"graphs": True, "compile": "none"},
            None,
            "was taken with CUDA graphs, not compiled, but gpu0 would run wi",
        ),
        (None, "blocks", "was taken without compiling, but"),
    ],
)
def test_a_profile_of_another_execution_is_refused(tmp_path, execution, compiled, says):
    with pytest.raises(BadInput) as refused:
        as_served(profiled(tmp_path, execution), compile=compiled)
    assert says in str(refused.value)
    assert str(refused.value).startswith("deployment.devices.gpu0: the profile cpu/tiny-dit")


def test_a_profile_says_how_it_was_taken_and_is_read_again(tmp_path):
    out = tmp_path / "taken.yaml"
    profile = measure("tiny-dit", out, Setup(devices=("cpu",), compile="none"), limit=1, seconds=0.01, brief=True)
    execution = profile.data.execution
    assert execution.as_dict() == {"graphs": False, "compile": "none"}
    assert execution.ready_seconds >= 0
    out.write_text(out.read_text().replace("compile: none", "compile: whole"))
    with pytest.raises(BadInput, match="compiled_sizes"):
        read_profile(out)


def test_what_measured_best_is_the_default_where_it_was_measured(monkeypatch, tmp_path):
    gpu = torch.device("cuda")  # nothing is asked of it
    monkeypatch.setenv("CC", sys.executable)  # a program that is there
    best = execution_of(Options(), find("sd15-512"), gpu)
    assert str(best) == (
        "CUDA graphs, compiled as a whole (batch 1 apart), channels last, fused projections, cudnn attention"
    )
    for options in (Options(compile="none"), Options(eager=True)):
        assert execution_of(options, find("sd15-512"), gpu).compile == "none"
    assert execution_of(Options(), find("palette-256"), gpu) == Execution(True)  # of which it is not known
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert execution_of(Options(), find("dit-xl2-256"), gpu) == Execution(True)
