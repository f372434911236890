"""SDXL with its refiner: two loops in one chain, whose images are those of diffusers' two pipelines."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from servetwin.core import BadInput, BatchWorker, Request, RunFolder, WorkerView
from servetwin.core.invariants.record_checker import check_records
from servetwin.policies.diffusion.edf import EDF
from servetwin.real import Options, Server
from servetwin.real.diffusion.checkpoint import check
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.lanes import Lane
from servetwin.real.diffusion.model_registry import KINDS, class_of
from servetwin.real.diffusion.models.shared_networks import clip_empty
from servetwin.real.diffusion.networks import build
from test_models import Tokens

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "diffusion-models.md"
REFUSED = "servetwin: cpu/refined-unet: no module 'refiner' (right would be: clip, clip2, unet, vae)\n"
NAME = "tiny-sdxl-refined"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "euler": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
    "dpm++2m": lambda: DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading", final_sigmas_type="zero"),
}
#: Devices, and the groups of modules with a worker each.
APART = {"gpu0": [("clip", "clip2", "unet")], "gpu1": [("refiner", "vae")]}


def by_diffusers(networks, inputs, noise, size, steps, share, scheduler):
    """The latents and the image of diffusers' base and refiner, and how many steps each of them ran."""
    ran, latents = {"unet": 0, "refiner": 0}, {}

    def counted(name):
        def heard(pipeline, i, t, values):
            ran[name] += 1
            latents[name] = values["latents"]
            return values

        return {"callback_on_step_end": heard}

    base = StableDiffusionXLPipeline(
        *(networks[n] for n in ("vae", "clip", "clip2")),
        *(None, None, networks["unet"], SCHEDULERS[scheduler]()),
        add_watermarker=False,
    )
    refiner = StableDiffusionXLImg2ImgPipeline(
        *(networks["vae"], None, networks["clip2"]),
        *(None, None, networks["refiner"], SCHEDULERS[scheduler]()),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    base.tokenizer, base.tokenizer_2 = Tokens(inputs["prompt"]), Tokens(inputs["prompt2"])
    vocabulary = networks["clip2"].config.vocab_size
    refiner.tokenizer_2 = Tokens(inputs["prompt2"], clip_empty(vocabulary, CPU, fill=0))
    for pipeline in (base, refiner):
        pipeline.set_progress_bar_config(disable=True)
    more = {"num_inference_steps": steps, "guidance_scale": 5.0}
    sized = dict(zip(("height", "width"), size, strict=True))
    first = base(
        "a prompt", latents=noise, denoising_end=share, output_type="latent", **sized, **more, **counted("unet")
    )
    made = refiner(
        "a prompt", image=first.images, denoising_start=share, output_type="pt", **more, **counted("refiner")
    )
    return latents["refiner"][0], made.images[0], ran


def slots_of(**options):
    slots = DeviceSlots(KINDS[NAME], Options(device="cpu", slots=4, **options), CPU)
    for module in slots.model.bodies:
        slots.warm(module, 1)
    slots.reset()
    return slots


@torch.no_grad()
def through(slots, number, works):
    """A request through the whole chain, by hand; gives its latents and its image."""
    kind = slots.kind
    progress = slots.take(Request(number, 0.0, 1.0, works))
    for module in kind.modules:
        if module in kind.loops:
            slots.begin(progress, works[module], module, works)
            for _ in range(works[module]):
                slots.step([progress])
        else:
            slots.once(module, [progress])
    made = [slots.model.state[name][progress.slot].clone() for name in ("latents", "image")]
    slots.release(number)
    return made


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@torch.no_grad()
def test_images_are_those_of_both_pipelines(scheduler):
    """Base and refiner of diffusers share ten steps by denoising_end and denoising_start, seven to three."""
    number = 3
    slots = slots_of(scheduler=scheduler)
    noise = torch.empty(1, *slots.kind.latent).normal_(generator=torch.Generator().manual_seed(number))
    inputs, networks = slots.model.inputs[number], slots.model.networks
    wanted, picture, ran = by_diffusers(networks, inputs, noise, slots.kind.size, 10, 0.7, scheduler)
    assert ran == {"unet": 7, "refiner": 3}
    found, image = through(slots, number, ran)
    near = 2e-5 * float(wanted.abs().max())
    assert (found - wanted).abs().max() <= near
    assert image.float().std() > 10
    assert (image.float() - picture * 255).abs().max() <= 1.01
    # It matters who runs the last steps.
    other, _ = through(slots, number, {"unet": 8, "refiner": 2})
    assert (other - wanted).abs().max() > 100 * near


@pytest.mark.parametrize("processes", [False, True])
def test_served_on_two_devices(processes, tmp_path):
    """Each request has steps of its own in both loops, and shares batches with others."""
    works = [{"unet": 4 + i % 3, "refiner": 2 + i % 2} for i in range(12)]
    slots = slots_of()
    wanted = [through(slots, i, work)[1].int() for i, work in enumerate(works)]
    devices = dict.fromkeys(APART, "cpu")
    server = Server(NAME, Options(device="cpu", devices=devices, slots=16, processes=processes))
    stages = server.kind.pipeline().stages([list(group) for groups in APART.values() for group in groups])
    places = {group: device for device, groups in APART.items() for group in groups}
    workers = []
    for stage in stages:
        view = WorkerView(stage, lambda module, n: 0.001, limit=3, slo_factor=3.0)
        workers.append(BatchWorker(stage, EDF(), view, device="gpu0" if processes else places[stage.modules]))
    made, recorder = {}, RunFolder(tmp_path / "run", server.describe())
    requests = [Request(i, i * 0.002, 60.0, work) for i, work in enumerate(works)]
    report = server.serve(
        stages, workers, requests, recorder, sink=lambda number, image: made.setdefault(number, image.int())
    )
    recorder.close()
    check_records(tmp_path / "run")
    assert report.summary.met == len(works)
    assert max(max(report.summary.sizes[stage.name]) for stage in stages) > 1
    for number, image in enumerate(wanted):
        assert int((made[number] - image).abs().max()) <= 1
    if not processes:
        assert sorted(report.hand_overs) == ["gpu0 to gpu1"]


@pytest.fixture
def weights(tmp_path):
    """Checkpoints of base and refiner, that of the refiner in the folder "refiner" of the other."""
    networks = slots_of(seed=7).model.networks
    folders = {"clip": "text_encoder", "clip2": "text_encoder_2", "unet": "unet", "vae": "vae"}
    for name, folder in {**folders, "refiner": "refiner/unet"}.items():
        networks[name].save_pretrained(tmp_path / "weights" / folder)
    for folder in ("scheduler", "refiner/scheduler"):
        SCHEDULERS["euler"]().save_pretrained(tmp_path / "weights" / folder)
    return tmp_path / "weights"


def test_checkpoints_of_both(weights):
    work = {"unet": 3, "refiner": 2}
    kind = KINDS[NAME]
    check(kind, weights)
    found, image = through(slots_of(seed=7, weights=weights), 1, work)
    wanted, picture = through(slots_of(seed=7), 1, work)
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert int((image.int() - picture.int()).abs().max()) <= 1
    assert (found - through(slots_of(), 1, work)[0]).abs().max() > 0.1
    path = weights / "refiner/scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(BadInput, match=r"refiner/scheduler.*predicts other things.*prediction_type: epsilon"):
        check(kind, weights)
    shutil.rmtree(weights / "refiner")
    with pytest.raises(BadInput, match="refiner/unet: the checkpoint has no such folder"):
        check(kind, weights)


def test_full_size():
    """Millions of parameters of the published refiner: 4.52 GB in half precision, and its heads."""
    kind, meta = KINDS["sdxl-refined-1024"], torch.device("meta")
    network = build(class_of(kind)(kind, meta, torch.float32), "refiner", Options(device="cpu"), meta)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(2259.5, rel=2e-3)


def test_a_profile_is_of_one_loop():
    kind = KINDS[NAME]
    base, refiner = kind.profiled_without(["refiner"]), kind.profiled_without(["unet"])
    assert (base.modules, base.loop) == (("clip", "clip2", "unet", "vae"), "unet")
    assert (refiner.modules, refiner.loop) == (("clip", "clip2", "refiner", "vae"), "refiner")
    assert refiner.placement == [["clip", "clip2"], ["refiner"], ["vae"]]
    for left_out in ((), ("unet", "refiner")):
        with pytest.raises(BadInput, match="a profile is of one of them"):
            kind.profiled_without(left_out)
    with pytest.raises(BadInput, match="cannot be served as"):
        kind.profiled_without(["unet", "vae"])
    with pytest.raises(BadInput, match="cannot be served as"):  # a run has both
        kind.with_modules(base.modules)


@pytest.mark.checkout
@pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel")
def test_the_guide(servetwin, tmp_path, monkeypatch):
    """What the guide shows, but that one loop alone is measured, and its times are those of the other too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path / "cache"))
    text = GUIDE.read_text()
    (experiment,) = re.findall(r"^```yaml\n# refined.yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    Path("refined.yaml").write_text(experiment)
    block = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (lines,) = (found.splitlines() for found in block if "tiny-sdxl-refined" in found)
    profiles = [line for line in lines if line.startswith("servetwin profile")]
    assert [re.search(r"--without (\w+)", line)[1] for line in profiles] == ["refiner", "unet"]
    made = profiles[1].replace("--seconds 0.1", "--seconds 0.01").replace("--limit 2", "--limit 1")
    code, _, err = servetwin(*made.split()[1:])
    assert code == 0, err
    measured = Path("refiner.yaml").read_text()
    Path("base.yaml").write_text(measured.replace("refiner", "unet"))
    loops = {name: m["loop"] for name, m in yaml.safe_load(measured)["modules"].items()}
    assert loops == {"clip": False, "clip2": False, "refiner": True, "vae": False}
    for line in lines:
        if line not in profiles:
            more = ["--requests", "8", *(f"--set=deployment.workers.{i}.limit=1" for i in range(4))]
            code, out, err = servetwin(*line.split()[1:], *(more if " run " in line else []))
            assert code == 0, (line, err)
    assert "attainment" in out
    check_records(Path("runs/real"))
    meta = json.loads(Path("runs/real/meta.json").read_text())
    assert meta["model"] == NAME
    refused = ["refined.yaml", "--set", "deployment.workers.2.device=gpu0"]  # whose profile is of the base
    assert servetwin("run", *refused)[::2] == (2, REFUSED)


def test_steps_that_may_be_changed_are_refused():
    """The end of the schedule would be that of steps that were not run."""
    server = Server(NAME, Options(device="cpu", slots=4))
    slots = server.device_slots("gpu0")
    stage = SimpleNamespace(modules=("unet",), next=("refiner",), loop="unet", actions=SimpleNamespace(reuse=False))
    worker = SimpleNamespace(stage=stage, name="unet", view=SimpleNamespace(limit=1))
    with pytest.raises(BadInput, match="loops in unet and refiner"):
        Lane(slots, worker)
