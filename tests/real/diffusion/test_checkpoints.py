"""``--weights``: checkpoints as people have them, made by diffusers' own classes. Those of another model, without
parts, torn or trained otherwise are refused in one line that names the file, and nothing is left behind."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from servetwin.core import BadInput, Request
from servetwin.real import Options
from servetwin.real.diffusion.checkpoint import as_trained, check
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.models import find
from transformers import CLIPTextConfig, CLIPTextModel

KIND = find("tiny-sd")
FOLDERS = {"clip": "text_encoder", "unet": "unet", "vae": "vae", "safety": "safety_checker"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
REAL = ["--backend", "real", "--device", "cpu", "--any-device", "--requests", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of the tiny Stable Diffusion, as diffusers saves one."""
    folder = tmp_path_factory.mktemp("checkpoint")
    slots = DeviceSlots(KIND, Options(device="cpu", slots=2, seed=3), torch.device("cpu"))
    for name, network in slots.model.networks.items():
        network.save_pretrained(folder / FOLDERS[name])
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    return folder


@pytest.fixture
def mine(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "weights")
    return tmp_path / "weights"


def unet(folder, **other):
    UNet2DConditionModel(**{**KIND.networks["unet"], **other}).save_pretrained(folder / "unet")


def like_sdxl(folder):
    unet(folder, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80)


def wider_clip(folder):
    config = {**KIND.networks["clip"], "hidden_size": 64}
    CLIPTextModel(CLIPTextConfig(**config)).save_pretrained(folder / "text_encoder")


def vae_of_16_channels(folder):
    AutoencoderKL(**{**KIND.networks["vae"], "latent_channels": 16}).save_pretrained(folder / "vae")


def shifted_vae(folder):
    AutoencoderKL(**{**KIND.networks["vae"], "shift_factor": 0.1}).save_pretrained(folder / "vae")


def scheduler(**other):
    def write(folder):
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **other}))

    return write


def without(*parts):
    def remove(folder):
        for part in parts:
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def torn(folder):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def broken_config(folder):
    (folder / "unet/config.json").write_text('{"sample_size": 8,')


def change(edit):
    def write(folder):
        tensors = load_file(folder / "unet" / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / "unet" / WEIGHTS)

    return write


def quantised(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.int8)


def transposed(tensors):
    tensors["time_embedding.linear_1.weight"] = tensors["time_embedding.linear_1.weight"].T.contiguous()


#: What is done to the checkpoint, and what is said.
WRONG = {
    "an unet like SDXL's": (like_sdxl, "unet: it has add_embedding"),
    "an unet of other width": (lambda f: unet(f, block_out_channels=(32, 96)), "in tiny-sd"),
    "an unet for inpainting": (
        lambda f: unet(f, in_channels=9),
        "conv_in.weight is 32x9x3x3, and 32x4x3x3 in tiny-sd",
    ),
    "an unet for wider prompts": (lambda f: unet(f, cross_attention_dim=64), "in tiny-sd"),
    "a wider text encoder": (wider_clip, "text_encoder: "),
    "a VAE of 16 channels": (vae_of_16_channels, "vae: "),
    "a VAE that shifts": (shifted_vae, "latents with shift_factor"),
    "a flow": (scheduler(prediction_type="flow_prediction"), "prediction_type: flow_prediction"),
    "predicts the sample": (scheduler(prediction_type="sample"), "prediction_type: sample"),
    "another noise schedule": (scheduler(beta_end=0.02), "beta_end: 0.02, but tiny-sd is sampled with 0.012"),
    "zero terminal SNR": (scheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr: True"),
    "no safety checker": (without("safety_checker"), "the checkpoint has no safety checker"),
    "no unet": (without("unet"), "the checkpoint has no such folder"),
    "no weights": (without(f"unet/{WEIGHTS}"), "there are no weights in it"),
    "no configuration": (without("vae/config.json"), "the checkpoint has no such file"),
    "a torn configuration": (broken_config, "this cannot be read"),
    "torn weights": (torn, "this file is torn"),
    "a tensor is missing": (change(lambda t: t.pop("conv_in.bias")), "conv_in.bias is missing in its weights"),
    "a tensor too many": (change(lambda t: t.update(lora=torch.zeros(2))), "lora is in its weights"),
    "quantised": (change(quantised), "conv_in.weight is of type I8"),
    "a tensor of another shape": (change(transposed), "time_embedding.linear_1.weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_checkpoint_is_refused_in_one_line_and_leaves_nothing(servetwin, mine, tmp_path, case):
    edit, says = WRONG[case]
    edit(mine)
    code, out, err = servetwin("run", "tiny-sd-cpu", *REAL, "--weights", mine, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert str(mine) in err
    assert not (tmp_path / "run").exists()


def test_a_second_try_works_in_the_same_folder(servetwin, mine, whole, tmp_path):
    wider_clip(mine)
    run = ["run", "tiny-sd-cpu", *REAL, "--weights", mine, "--out", tmp_path / "run"]
    assert servetwin(*run)[0] == 2
    shutil.rmtree(mine)
    shutil.copytree(whole, mine)
    code, _, err = servetwin(*run)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "run/summary.json").read_text())["requests"] == 2


def test_in_processes_it_leaves_nothing_either(servetwin, mine, tmp_path):
    wider_clip(mine)
    code, _, err = servetwin("run", "tiny-sd-cpu", *REAL, "--processes", "--weights", mine, "--out", tmp_path / "run")
    assert code == 2
    assert err.count("\n") == 1
    assert "text_encoder" in err
    assert not (tmp_path / "run").exists()


def test_half_precision_and_one_that_says_nothing_of_its_scheduler(mine):
    shutil.rmtree(mine / "scheduler")
    for name in ("unet", "vae"):
        path = mine / name / WEIGHTS
        save_file({k: v.half() for k, v in load_file(path).items()}, path)
    slots = DeviceSlots(KIND, Options(device="cpu", slots=2, weights=mine), torch.device("cpu"))
    weight = load_file(mine / "unet" / WEIGHTS)["conv_in.weight"]
    assert torch.equal(slots.model.networks["unet"].conv_in.weight, weight.float())


def test_a_profile_of_a_wrong_one_is_not_begun(servetwin, mine, tmp_path):
    scheduler(prediction_type="sample")(mine)
    code, _, err = servetwin(
        "profile", "tiny-sd", "--device", "cpu", "--weights", mine, "--out", tmp_path / "new/mine.yaml"
    )
    assert code == 2
    assert "prediction_type: sample" in err
    assert not (tmp_path / "new").exists()


def test_one_that_predicts_v_is_sampled_as_such(mine):
    """As the loop of diffusers goes with the scheduler of the checkpoint."""
    scheduler(prediction_type="v_prediction")(mine)
    check(KIND, mine)
    kind = as_trained(KIND, mine)
    slots = DeviceSlots(kind, Options(device="cpu", slots=2, weights=mine), torch.device("cpu"))
    for module in ("clip", "unet"):
        slots.warm(module, 1)
    slots.reset()
    stock = DDIMScheduler.from_pretrained(
        mine / "scheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    stock.set_timesteps(5)
    with torch.no_grad():
        progress = slots.take(Request(1, 0.0, 1.0, {"unet": 5}))
        slots.once("clip", [progress])
        slots.begin(progress, 5)
        x = slots.model.state["latents"][progress.slot : progress.slot + 1].clone()
        embedding = slots.model.state["embedding"][progress.slot : progress.slot + 1]
        context = torch.cat([slots.model.definition.empty, embedding])
        for t in stock.timesteps:
            blind, led = slots.model.networks["unet"](torch.cat([x, x]), t, context).sample.chunk(2)
            x = stock.step(blind + kind.guidance * (led - blind), t, x).prev_sample
            slots.step([progress])
    assert torch.allclose(slots.model.state["latents"][progress.slot], x[0], atol=1e-4 * float(x.abs().max()))


def test_without_a_safety_checker(mine):
    """A pipeline that has none does not need one in the checkpoint."""
    without("safety_checker")(mine)
    kind = KIND.with_modules(["clip", "unet", "vae"])
    check(kind, mine)
    slots = DeviceSlots(kind, Options(device="cpu", slots=2, weights=mine), torch.device("cpu"))
    assert [*slots.model.networks] == ["unet", "vae", "clip"]
    assert [*slots.model.bodies] == ["clip", "unet", "vae"]
    with pytest.raises(BadInput, match="safety may be left out"):
        KIND.with_modules(["clip", "unet"])
