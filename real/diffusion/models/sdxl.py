"""Stable Diffusion XL (Podell et al. 2023, 2307.01952), its base: two text encoders, a U-Net with guidance, a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind, Sampling
from .shared_networks import (
    CLIP_G,
    CLIP_L,
    CLIP_TOKENS,
    SCALED_BETAS,
    TINY_CLIP,
    both,
    build_clip,
    build_vae,
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

_CHAIN = (("clip", False), ("clip2", False), ("unet", True), ("vae", False))
_FOLDERS = {"clip": "text_encoder", "clip2": "text_encoder_2"}
_TEXT = ("clip", "clip2")
_SAMPLING = Sampling(betas=SCALED_BETAS, leading=True, sampler="euler")


def _sdxl(name: str, image: int) -> Kind:
    networks: dict[str, dict[str, Any]] = {
        "unet": {
            "sample_size": image // 8,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "layers_per_block": 2,
        },
        "vae": kl_vae(image, scaling_factor=0.13025),
        "clip": CLIP_L,
        "clip2": CLIP_G,
    }
    title = f"Stable Diffusion XL, {image}x{image}"
    latent = (4, image // 8, image // 8)
    return Kind(
        name,
        title,
        _CHAIN,
        image,
        latent,
        networks,
        folders=_FOLDERS,
        largest=8,
        sampling=_SAMPLING,
        guidance=5.0,
        rows=2,
        unguided=True,
        fixed=_TEXT,
    )


_TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
        "norm_num_groups": 8,
        "layers_per_block": 1,
    },
    "vae": tiny_vae(scaling_factor=0.13025),
    "clip": TINY_CLIP,
    "clip2": {**TINY_CLIP, "hidden_act": "gelu"},
}


class StableDiffusionXL(DiffusionModel):
    """Images are uncropped and as large as asked for. Without a prompt the U-Net is led by zeros, as the base model
    was published (``force_zeros_for_empty_prompt``)."""

    kinds = (
        _sdxl("sdxl-1024", 1024),
        _sdxl("sdxl-512", 512),
        Kind(
            "tiny-sdxl",
            "a tiny Stable Diffusion XL, 16x16",
            _CHAIN,
            16,
            (4, 8, 8),
            _TINY,
            folders=_FOLDERS,
            largest=6,
            sampling=_SAMPLING,
            guidance=5.0,
            rows=2,
            unguided=True,
            fixed=_TEXT,
        ),
    )
    convolutional = True

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import UNet2DConditionModel

        if name == "vae":
            return build_vae(config)
        if name in ("clip", "clip2"):
            return build_clip(config, projected=name == "clip2")
        made: nn.Module = UNet2DConditionModel(**config)
        return made

    def dtype_of(self, name: str, network: nn.Module) -> torch.dtype:
        """The VAE of SDXL overflows in half precision, unless it was trained not to: diffusers does the same."""
        import torch

        if name == "vae" and self.dtype == torch.float16 and network.config.force_upcast:
            return torch.float32
        return self.dtype

    def prepare(self) -> None:
        height, width = self.kind.size
        self.scale = height // self.kind.latent[-2], width // self.kind.latent[-1]

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        import torch

        first, second = self.kind.networks["clip"], self.kind.networks["clip2"]
        return {
            "prompt": ((CLIP_TOKENS,), torch.long),
            "prompt2": ((CLIP_TOKENS,), torch.long),
            "embedding": ((CLIP_TOKENS, first["hidden_size"]), self.dtype),
            "embedding2": ((CLIP_TOKENS, second["hidden_size"]), self.dtype),
            "pooled": ((second["projection_dim"],), self.dtype),
        }

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        prompt = clip_prompt(generator, self.kind.networks["clip"]["vocab_size"])
        return {"prompt": prompt, "prompt2": prompt}

    def clip(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        found = self.networks["clip"](slots["prompt"].index_select(0, index), output_hidden_states=True)
        slots["embedding"].index_copy_(0, index, found.hidden_states[-2])

    def clip2(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        found = self.networks["clip2"](slots["prompt2"].index_select(0, index), output_hidden_states=True)
        slots["embedding2"].index_copy_(0, index, found.hidden_states[-2])
        slots["pooled"].index_copy_(0, index, found.text_embeds)

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        import torch

        names = ("embedding", "embedding2")
        embedding = torch.cat([slots[name].index_select(0, index) for name in names], dim=-1)
        pooled = slots["pooled"].index_select(0, index)
        height, width = x.shape[-2] * self.scale[0], x.shape[-1] * self.scale[1]
        seen = twice(x, guidance)
        # Original size, crop, and target size: by the shape, so that a batch's graph holds them.
        ids = torch.zeros(seen.shape[0], 6, dtype=self.dtype, device=x.device)
        ids[:, 0::4], ids[:, 1::4] = height, width
        more = {"text_embeds": both(torch.zeros_like(pooled), pooled, guidance), "time_ids": ids}
        led = both(torch.zeros_like(embedding), embedding, guidance)
        noise = self.network(seen, twice(t, guidance), led, added_cond_kwargs=more, return_dict=False)[0]
        return guided(noise, guidance)

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        decode(self.networks["vae"], slots, index)
