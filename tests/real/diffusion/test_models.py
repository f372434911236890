"""The models that come along: their images are those of their diffusers pipelines, alone and in mixed batches."""

import threading
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
)
from one_request import begin, finish
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.model_registry import KINDS, class_of
from servetwin.real.diffusion.models.shared_networks import clip_empty, t5_empty
from servetwin.real.diffusion.networks import build
from servetwin.real.diffusion.options import Options

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
STEPS = 4
TINY = [name for name in KINDS if name.startswith("tiny-")]


def slots_of(name, **options):
    slots = DeviceSlots(KINDS[name], Options(device="cpu", slots=4, **options), CPU)
    for module in slots.model.bodies:
        slots.warm(module, 3)
    slots.reset()
    return slots


class Tokens:
    """A tokenizer that knows one prompt, and the empty one."""

    def __init__(self, ids, empty=None, mask=None):
        self.ids, self.model_max_length = ids[None], len(ids)
        self.mask = torch.ones_like(self.ids) if mask is None else mask[None].long()
        self.empty = empty
        self.added_tokens_encoder = {}

    def __call__(self, prompt, *_, **__):
        if prompt not in ("", [""]):
            return SimpleNamespace(input_ids=self.ids, attention_mask=self.mask)
        mask = torch.zeros_like(self.ids)
        mask[0, 0] = 1
        return SimpleNamespace(input_ids=self.empty, attention_mask=mask)

    def tokenize(self, prompt):
        return prompt.split()


def sdxl(networks, inputs):
    made = StableDiffusionXLPipeline(
        *(networks[n] for n in ("vae", "clip", "clip2")),
        None,
        None,
        networks["unet"],
        EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
    made.tokenizer, made.tokenizer_2 = Tokens(inputs["prompt"]), Tokens(inputs["prompt2"])
    return made, {"guidance_scale": 5.0}


def flux(networks, inputs):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    made = FluxPipeline(
        scheduler, networks["vae"], networks["clip"], None, networks["t5"], None, networks["transformer"]
    )
    made.tokenizer, made.tokenizer_2 = Tokens(inputs["prompt"]), Tokens(inputs["prompt2"])
    return made, {"guidance_scale": 3.5, "max_sequence_length": len(inputs["prompt2"])}


def sd3(networks, inputs):
    made = StableDiffusion3Pipeline(
        networks["transformer"],
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        networks["vae"],
        *(networks["clip"], None, networks["clip2"], None, networks["t5"], None),
    )
    tokens = len(inputs["prompt3"])
    made.tokenizer = Tokens(inputs["prompt"], clip_empty(1000, CPU))
    made.tokenizer_2 = Tokens(inputs["prompt2"], clip_empty(1000, CPU, fill=0))
    made.tokenizer_3 = Tokens(inputs["prompt3"], t5_empty(tokens, CPU))
    return made, {"guidance_scale": 7.0, "max_sequence_length": tokens}


def pixart(networks, inputs):
    tokens = len(inputs["prompt"])
    made = PixArtSigmaPipeline(
        None, networks["t5"], networks["vae"], networks["transformer"], DPMSolverMultistepScheduler()
    )
    made.tokenizer = Tokens(inputs["prompt"], t5_empty(tokens, CPU), inputs["mask"])
    return made, {
        "guidance_scale": 4.5,
        "max_sequence_length": tokens,
        "use_resolution_binning": False,
        "clean_caption": False,
    }


def wan(networks, inputs):
    tokens = len(inputs["prompt"])
    made = WanPipeline(
        None, networks["t5"], networks["vae"], FlowMatchEulerDiscreteScheduler(shift=3.0), networks["transformer"]
    )
    made.tokenizer = Tokens(inputs["prompt"], t5_empty(tokens, CPU), inputs["mask"])
    return made, {"guidance_scale": 5.0, "max_sequence_length": tokens, "num_frames": 5}


def sd(networks, inputs):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    parts = (networks["vae"], networks["clip"], None, networks["unet"], scheduler, None, None)
    made = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    vocabulary = networks["clip"].config.vocab_size
    made.tokenizer = Tokens(inputs["prompt"], clip_empty(vocabulary, CPU))
    return made, {"guidance_scale": 7.5}


PIPELINES = {
    "tiny-sd": sd,
    "tiny-sdxl": sdxl,
    "tiny-flux": flux,
    "tiny-sd3": sd3,
    "tiny-pixart": pixart,
    "tiny-wan": wan,
}


@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_images_are_those_of_the_pipeline(name):
    """From the tokens of a prompt to the bytes of an image, with the whole pipeline of diffusers beside it."""
    number = 3
    slots = slots_of(name)
    pipeline, more = PIPELINES[name](slots.model.networks, slots.model.inputs[number])
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.empty(1, *slots.kind.latent).normal_(generator=torch.Generator().manual_seed(number))
    if name == "tiny-flux":
        noise = pipeline._pack_latents(noise, *noise.shape)
    height, width = slots.kind.size
    made = pipeline(
        "a prompt", num_inference_steps=STEPS, latents=noise, height=height, width=width, output_type="pt", **more
    )
    # Of a video diffusers gives frames x 3 x height x width.
    wanted = made.frames[0].transpose(0, 1) if slots.kind.frames is not None else made.images[0]
    progress = begin(slots, number, STEPS)
    for _ in range(STEPS):
        slots.step([progress])
    found = finish(slots, progress)
    assert found.float().std() > 10
    assert (found.float() - wanted * 255).abs().max() <= 1.01


@torch.no_grad()
def test_two_videos_at_once_are_those_of_one_after_the_other():
    """Wan's VAE keeps in the network what it knows of earlier frames: workers on threads decode in turn."""
    slots = slots_of("tiny-wan")
    batch = [begin(slots, number, STEPS) for number in (0, 1)]
    wanted = [finish(slots, progress) for progress in batch]
    assert not torch.equal(*wanted)
    state, vae = slots.model.state, slots.model.definition.vae
    state["image"].zero_()

    def decode(slot):
        with torch.no_grad():
            for _ in range(8):
                vae(state, torch.tensor([slot]))

    threads = [threading.Thread(target=decode, args=(progress.slot,)) for progress in batch]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for progress, image in zip(batch, wanted, strict=True):
        assert torch.equal(state["image"][progress.slot], image)


#: How far results may differ that are computed in another batch, over the largest of them.
ROUNDING = {"float32": 2e-5, "bfloat16": 0.06, "float16": 0.01}


@pytest.mark.parametrize(
    ("precision", "sampler"), [*((precision, "default") for precision in ROUNDING), ("float32", "dpm++2m")]
)
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_alone_is_as_in_a_mixed_batch(name, precision, sampler):
    """Requests of other step counts that join at other times change nothing."""
    slots = slots_of(name, precision=precision, scheduler=None if sampler == "default" else sampler)
    latents = slots.model.state["latents"]
    wanted = {}
    for number, steps in ((0, 5), (1, 3), (2, 4)):
        progress = begin(slots, number, steps)
        for _ in range(steps):
            slots.step([progress])
        wanted[number] = latents[progress.slot].clone()
        slots.release(number)
    first = begin(slots, 0, 5)
    slots.step([first])
    others = [begin(slots, 1, 3), begin(slots, 2, 4)]
    for _ in range(4):
        slots.step([others[0], first, others[1]])
    for progress in (first, *others):
        off = (latents[progress.slot] - wanted[progress.request]).abs().max()
        assert off <= ROUNDING[precision] * max(1.0, wanted[progress.request].abs().max())


SIZES = {
    "sdxl-1024": {"unet": 2567.5, "vae": 83.7, "clip": 123.1, "clip2": 694.7},
    "flux1-dev-1024": {"transformer": 11901.4, "vae": 83.8, "t5": 4762.3},
    "flux1-schnell-1024": {"transformer": 11891.2},
    "sd3-medium-1024": {"transformer": 2028.3, "clip": 123.65},  # and 56.6 of positions, which are no parameters
    "wan-1.3b-480p": {"transformer": 1418.99, "vae": 126.89},
    "pixart-sigma-1024": {"transformer": 610.86},
}


@pytest.mark.parametrize("name", SIZES)
def test_full_sizes(name):
    """Millions of parameters, as published; built without memory."""
    kind, meta = KINDS[name], torch.device("meta")
    definition = class_of(kind)(kind, meta, torch.float32)
    for module, millions in SIZES[name].items():
        network = build(definition, module, Options(device="cpu"), meta)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3), module
