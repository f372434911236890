"""The networks of a model, and what each module does with the slot tensors.

A module is a function of *rows*, the indices of the slots that it works on; it reads and writes the tensors in
`Model.state` in place, so that it can be captured in a CUDA graph once per batch size.

======== ============================================== ==================================================
module    reads                                          writes
======== ============================================== ==================================================
clip      prompt                                         embedding
unet, dit latents, embedding (sd), label (dit),          latents
          condition (palette); the rows of its steps
vae       latents                                        image
safety    image                                          image (blank where a concept was recognised)
======== ============================================== ==================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import checkpoint
from .execution import apply, execution_of
from .models import Kind
from .options import Options

Body = Callable[[Tensor], None]

#: Tokens of a prompt, as CLIP takes them.
PROMPT = 77
#: Distinct prompts, labels and images that requests bring, by request id modulo this.
VARIETY = 16


class Model:
    """The networks of *kind* on *device*, and a slot for each of up to ``options.slots`` requests."""

    def __init__(self, kind: Kind, options: Options, device: torch.device) -> None:
        self.kind = kind
        self.device = device
        self.dtype = options.dtype(device)
        gpu = device.type == "cuda"
        self.execution = execution_of(options, kind, device)
        self.networks: dict[str, nn.Module] = {}
        with torch.random.fork_rng(devices=[device] if gpu else []):
            torch.manual_seed(options.seed)
            for name, config in kind.networks.items():
                network = _build(kind, name, config, options, device)
                network.requires_grad_(False).eval().to(device=device, dtype=self.dtype)
                self.networks[name] = network
        c, h, w = kind.latent
        self.image_shape = (3, kind.image, kind.image)
        self.state: dict[str, Tensor] = {
            "latents": torch.zeros(options.slots, c, h, w, device=device),
            "image": torch.zeros(options.slots, *self.image_shape, dtype=torch.uint8, device=device),
        }
        #: What runs the loop's network; the CUDA graphs are captured of it.
        self.network = apply(self.networks[kind.loop], self.execution, kind.rows)
        self.bodies: dict[str, Body] = {"output": self._convert} if kind.family == "palette" else {}
        prepare = {"sd": self._prepare_sd, "dit": self._prepare_dit, "palette": self._prepare_palette}
        prepare[kind.family](options)
        self.inputs = self._draw_inputs(options)

    # -- what a request brings --------------------------------------------------------------------------

    def _draw_inputs(self, options: Options) -> list[dict[str, Tensor]]:
        """Prompts, labels or images as a client would send them; in pinned memory where there is a GPU."""
        generator = torch.Generator().manual_seed(options.seed)
        drawn = []
        for _ in range(VARIETY):
            if self.kind.family == "sd":
                vocabulary = self.kind.networks["clip"]["vocab_size"]
                prompt = torch.randint(2, vocabulary - 2, (PROMPT,), generator=generator)
                prompt[0], prompt[-1] = vocabulary - 2, vocabulary - 1
                values = {"prompt": prompt}
            elif self.kind.family == "dit":
                values = {"label": torch.randint(0, 1000, (), generator=generator)}
            else:
                values = {
                    "condition": torch.rand(self.image_shape, generator=generator).mul_(2).sub_(1).to(self.dtype)
                }
            drawn.append({k: v.pin_memory() if self.device.type == "cuda" else v for k, v in values.items()})
        return drawn

    def bring(self, slot: int, request: int) -> None:
        """Put what *request* sent into its *slot*."""
        for name, value in self.inputs[request % VARIETY].items():
            self.state[name][slot].copy_(value, non_blocking=True)

    def noise(self, slot: int, seed: int, first: float, generator: torch.Generator) -> None:
        """Set the latents of *slot* up: Gaussian noise from *seed*, times *first*."""
        generator.manual_seed(seed)
        latents = self.state["latents"][slot]
        latents.normal_(generator=generator)
        if first != 1.0:
            latents.mul_(first)

    # -- what a loop does -------------------------------------------------------------------------------

    def _loop(self, predict: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Body:
        """One denoising step. Rows are (slot, timestep, scale, keep, add, guidance)."""
        layout = torch.channels_last if self.execution.channels_last else torch.contiguous_format

        def step(rows: Tensor) -> None:
            latents = self.state["latents"]  # asked for here: a process may get the tensors of another
            index = rows[:, 0].long()
            scale, keep, add = (rows[:, i].view(-1, 1, 1, 1) for i in (2, 3, 4))
            x = latents.index_select(0, index)
            seen = (x * scale).to(self.dtype).contiguous(memory_format=layout)
            noise = predict(seen, rows[:, 1], index, rows[:, 5])
            latents.index_copy_(0, index, (x * keep + noise.float() * add).contiguous())

        return step

    def _once(self, body: Callable[[Tensor], None]) -> Body:
        return lambda rows: body(rows[:, 0].long())

    # -- Stable Diffusion -------------------------------------------------------------------------------

    def _prepare_sd(self, options: Options) -> None:
        config = self.kind.networks["clip"]
        width = config["hidden_size"]
        self.state["prompt"] = torch.zeros(options.slots, PROMPT, dtype=torch.long, device=self.device)
        self.state["embedding"] = torch.zeros(options.slots, PROMPT, width, dtype=self.dtype, device=self.device)
        empty = torch.full((1, PROMPT), config["vocab_size"] - 1, device=self.device)
        empty[0, 0] = config["vocab_size"] - 2
        with torch.no_grad():
            self.empty = self.networks["clip"](empty)[0]
        safety = self.networks["safety"]
        self.image_size = int(safety.config.vision_config.image_size)
        self.norm = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073], device=self.device).view(1, 3, 1, 1),
            torch.tensor([0.26862954, 0.26130258, 0.27577711], device=self.device).view(1, 3, 1, 1),
        )
        self.bodies.update(
            clip=self._once(self._clip),
            unet=self._loop(self._unet_guided),
            vae=self._once(self._decode),
            safety=self._once(self._check),
        )

    def _clip(self, index: Tensor) -> None:
        hidden = self.networks["clip"](self.state["prompt"].index_select(0, index))[0]
        self.state["embedding"].index_copy_(0, index, hidden)

    def _unet_guided(self, x: Tensor, t: Tensor, index: Tensor, guidance: Tensor) -> Tensor:
        embedding = self.state["embedding"].index_select(0, index)
        both = torch.cat([self.empty.expand(x.shape[0], -1, -1), embedding])
        noise = self.network(torch.cat([x, x]), torch.cat([t, t]), both, return_dict=False)[0]
        blind, led = noise.chunk(2)
        return blind + guidance.view(-1, 1, 1, 1).to(noise.dtype) * (led - blind)

    def _check(self, index: Tensor) -> None:
        """Blank the images in which the safety checker recognises a concept, without leaving the device.

        As diffusers' StableDiffusionSafetyChecker decides: a special concept lowers the thresholds of the others by
        0.01.
        """
        checker: Any = self.networks["safety"]
        images = self.state["image"].index_select(0, index)
        seen = functional.interpolate(
            images.float(), size=(self.image_size,) * 2, mode="bicubic", antialias=True, align_corners=False
        )
        mean, deviation = self.norm
        seen = ((seen.clamp(0, 255) / 255.0 - mean) / deviation).to(self.dtype)
        embedding = functional.normalize(checker.visual_projection(checker.vision_model(seen)[1]))
        special = (
            embedding @ functional.normalize(checker.special_care_embeds).T - checker.special_care_embeds_weights
        )
        concepts = embedding @ functional.normalize(checker.concept_embeds).T - checker.concept_embeds_weights
        stricter = 0.01 * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        found = ((concepts + stricter).round(decimals=3) > 0).any(dim=1)
        images = torch.where(found.view(-1, 1, 1, 1), torch.zeros_like(images), images)
        self.state["image"].index_copy_(0, index, images)

    # -- DiT --------------------------------------------------------------------------------------------

    def _prepare_dit(self, options: Options) -> None:
        self.state["label"] = torch.zeros(options.slots, dtype=torch.long, device=self.device)
        self.bodies.update(dit=self._loop(self._dit), vae=self._once(self._decode))

    def _dit(self, x: Tensor, t: Tensor, index: Tensor, guidance: Tensor) -> Tensor:
        label = self.state["label"].index_select(0, index)
        noise = self.network(x, timestep=t, class_labels=label, return_dict=False)[0]
        return noise[:, : x.shape[1]]  # the rest is the learned variance, which DDIM and Euler do not use

    # -- Palette ----------------------------------------------------------------------------------------

    def _prepare_palette(self, options: Options) -> None:
        self.state["condition"] = torch.zeros(options.slots, *self.image_shape, dtype=self.dtype, device=self.device)
        self.bodies.update(unet=self._loop(self._palette))

    def _palette(self, x: Tensor, t: Tensor, index: Tensor, guidance: Tensor) -> Tensor:
        condition = self.state["condition"].index_select(0, index)
        return self.network(torch.cat([x, condition], dim=1), t, return_dict=False)[0]

    def _convert(self, rows: Tensor) -> None:
        index = rows[:, 0].long()
        self.state["image"].index_copy_(0, index, _pixels(self.state["latents"].index_select(0, index)))

    # -- both latent models -----------------------------------------------------------------------------

    def _decode(self, index: Tensor) -> None:
        vae: Any = self.networks["vae"]
        latents = (self.state["latents"].index_select(0, index) / vae.config.scaling_factor).to(self.dtype)
        self.state["image"].index_copy_(0, index, _pixels(vae.decode(latents, return_dict=False)[0]))


def _pixels(x: Tensor) -> Tensor:
    """From -1..1 to bytes."""
    return ((x.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def _build(kind: Kind, name: str, config: Any, options: Options, device: torch.device) -> nn.Module:
    """A network, from its checkpoint if there is one and else from its configuration with random weights."""
    from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    classes: dict[str, Any] = {
        "clip": CLIPTextModel,
        "unet": UNet2DConditionModel if kind.family == "sd" else UNet2DModel,
        "dit": DiTTransformer2DModel,
        "vae": AutoencoderKL,
        "safety": StableDiffusionSafetyChecker,
    }
    make = classes[name]
    plain = dict(config)

    def empty() -> nn.Module:
        if name == "clip":
            return make(CLIPTextConfig(**plain))
        return make(CLIPConfig(**plain)) if name == "safety" else make(**plain)

    if options.weights is not None:
        with torch.device("meta"):
            shape = empty()
        return checkpoint.load(kind, name, options.weights, make, shape, options.dtype(device))
    with device:  # on a GPU random weights are drawn there, which takes seconds less
        network: Any = empty()
        if name == "safety":
            for parameter in (network.concept_embeds_weights, network.special_care_embeds_weights):
                parameter.data.fill_(1.0)  # thresholds that random weights do not reach
            for parameter in (network.concept_embeds, network.special_care_embeds):
                parameter.data.normal_()
        return network
