"""Stable Diffusion 1 (Rombach et al. 2022, 2112.10752): a text encoder, a U-Net with guidance, a VAE, a safety
checker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind, Sampling
from .shared_networks import (
    CLIP_L,
    CLIP_TOKENS,
    SCALED_BETAS,
    TINY_CLIP,
    both,
    build_clip,
    build_vae,
    clip_empty,
    clip_prompt,
    decode,
    guided,
    kl_vae,
    tiny_vae,
    twice,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CHAIN = (("clip", False), ("unet", True), ("vae", False), ("safety", False))
_FOLDERS = {"clip": "text_encoder", "safety": "safety_checker"}
_GROUPS = (("clip",), ("unet",), ("vae", "safety"))
_SAMPLING = Sampling(betas=SCALED_BETAS)
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def _kind(name: str, title: str, image: int, latent: tuple[int, ...], networks: dict[str, Any], largest: int) -> Kind:
    return Kind(
        name,
        title,
        _CHAIN,
        image,
        latent,
        networks,
        groups=_GROUPS,
        optional=("safety",),
        folders=_FOLDERS,
        largest=largest,
        sampling=_SAMPLING,
        guidance=7.5,
        rows=2,
        unguided=True,
        fixed=("clip",),
    )


def _sd15(name: str, image: int) -> Kind:
    networks: dict[str, dict[str, Any]] = {
        "unet": {
            "sample_size": image // 8,
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "layers_per_block": 2,
        },
        "vae": kl_vae(image, scaling_factor=0.18215),
        "clip": CLIP_L,
        "safety": {
            "projection_dim": 768,
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
            },
            "text_config": {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, **_IDS},
        },
    }
    title = f"Stable Diffusion v1.5, {image}x{image}"
    return _kind(name, title, image, (4, image // 8, image // 8), networks, 12)


_TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "layers_per_block": 1,
    },
    "vae": tiny_vae(scaling_factor=0.18215),
    "clip": {**TINY_CLIP, **_IDS},
    "safety": {
        "projection_dim": 32,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, **_IDS},
    },
}


class StableDiffusion(DiffusionModel):
    """The safety checker may be left out."""

    kinds = (
        _sd15("sd15-512", 512),
        _sd15("sd15-256", 256),
        _kind("tiny-sd", "a tiny Stable Diffusion, 16x16", 16, (4, 8, 8), _TINY, 6),
    )
    convolutional = True

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        if name == "clip":
            return build_clip(config)
        if name == "vae":
            return build_vae(config)
        return _safety_checker(config) if name == "safety" else _unet(config)

    def prepare(self) -> None:
        import torch

        clip, safety = self.networks["clip"], self.networks.get("safety")
        with torch.no_grad():
            self.empty = clip(clip_empty(self.kind.networks["clip"]["vocab_size"], self.device))[0]
        if safety is not None:
            self.seen = int(safety.config.vision_config.image_size)
            self.norm = (
                torch.tensor([0.48145466, 0.4578275, 0.40821073], device=self.device).view(1, 3, 1, 1),
                torch.tensor([0.26862954, 0.26130258, 0.27577711], device=self.device).view(1, 3, 1, 1),
            )

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        import torch

        width = self.kind.networks["clip"]["hidden_size"]
        return {"prompt": ((CLIP_TOKENS,), torch.long), "embedding": ((CLIP_TOKENS, width), self.dtype)}

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        return {"prompt": clip_prompt(generator, self.kind.networks["clip"]["vocab_size"])}

    def clip(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        hidden = self.networks["clip"](slots["prompt"].index_select(0, index))[0]
        slots["embedding"].index_copy_(0, index, hidden)

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        led = both(self.empty, slots["embedding"].index_select(0, index), guidance)
        noise = self.network(twice(x, guidance), twice(t, guidance), led, return_dict=False)[0]
        return guided(noise, guidance)

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        decode(self.networks["vae"], slots, index)

    def safety(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        """Blank the images in which the safety checker recognises a concept, without leaving the device.

        As diffusers' StableDiffusionSafetyChecker decides: a special concept lowers the thresholds of the others by
        0.01.
        """
        import torch
        from torch.nn import functional

        checker: Any = self.networks["safety"]
        images = slots["image"].index_select(0, index)
        seen = functional.interpolate(
            images.float(), size=(self.seen,) * 2, mode="bicubic", antialias=True, align_corners=False
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
        slots["image"].index_copy_(0, index, images)


def _unet(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    made: nn.Module = UNet2DConditionModel(**config)
    return made


def _safety_checker(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    network: Any = StableDiffusionSafetyChecker(CLIPConfig(**config))
    for parameter in (network.concept_embeds_weights, network.special_care_embeds_weights):
        parameter.data.fill_(1.0)  # thresholds that random weights do not reach
    for parameter in (network.concept_embeds, network.special_care_embeds):
        parameter.data.normal_()
    made: nn.Module = network
    return made
