"""Stable Diffusion XL with its refiner (Podell et al. 2023, 2307.01952, 2.5): the base's U-Net denoises for the first
steps, a second one, trained on the low noise levels, for the rest, on the same latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..kind import Kind
from .sdxl import StableDiffusionXL
from .shared_networks import both, clip_empty, guided, twice

if TYPE_CHECKING:
    from torch import Tensor, nn

_CHAIN = (("clip", False), ("clip2", False), ("unet", True), ("refiner", True), ("vae", False))
#: The refiner's checkpoint lies in that of the base, as its folder "refiner".
_FOLDER = "refiner/unet"
#: What the refiner is told of how images look that it is to make, and of those it is not to: diffusers' own.
_AESTHETIC_SCORE, _NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5

_REFINER: dict[str, Any] = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
    "layers_per_block": 2,
}
_TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 72,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}


def _refined(base: Kind, name: str, refiner: Mapping[str, Any]) -> Kind:
    """*base* followed by a *refiner*."""
    head, comma, size = base.title.partition(",")
    return replace(
        base,
        name=name,
        title=f"{head} with refiner{comma}{size}",
        chain=_CHAIN,
        networks={**base.networks, "refiner": refiner},
        folders={**base.folders, "refiner": _FOLDER},
    )


_BASE = {kind.name: kind for kind in StableDiffusionXL.kinds}


class StableDiffusionXLRefined(StableDiffusionXL):
    """The refiner sees the second text encoder alone. Without a prompt it is led by what that makes of an empty one,
    as it was published (``force_zeros_for_empty_prompt`` false), and it is told an aesthetic score."""

    kinds = (
        _refined(_BASE["sdxl-1024"], "sdxl-refined-1024", {**_REFINER, "sample_size": 128}),
        _refined(_BASE["sdxl-512"], "sdxl-refined-512", {**_REFINER, "sample_size": 64}),
        _refined(_BASE["tiny-sdxl"], "tiny-sdxl-refined", _TINY),
    )

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        return super().build("unet" if name == "refiner" else name, config)

    def prepare(self) -> None:
        super().prepare()
        vocabulary = self.kind.networks["clip2"]["vocab_size"]
        # Prompts of the second encoder are filled up with its first token, "!".
        empty = clip_empty(vocabulary, self.device, fill=0)
        found = self.networks["clip2"](empty, output_hidden_states=True)
        self.blind, self.blind_pooled = found.hidden_states[-2], found.text_embeds

    def predict_refiner(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        """As `predict`, of the refiner's U-Net."""
        import torch

        height, width = x.shape[-2] * self.scale[0], x.shape[-1] * self.scale[1]
        seen = twice(x, guidance)
        # Original size, crop, and aesthetic score, which is another one for the rows without the prompt.
        ids = torch.zeros(seen.shape[0], 5, dtype=self.dtype, device=x.device)
        ids[:, 0], ids[:, 1], ids[:, 4] = height, width, _AESTHETIC_SCORE
        if guidance is not None:
            ids[: x.shape[0], 4] = _NEGATIVE_AESTHETIC_SCORE
        embedding, pooled = (slots[name].index_select(0, index) for name in ("embedding2", "pooled"))
        more = {"text_embeds": both(self.blind_pooled, pooled, guidance), "time_ids": ids}
        led = both(self.blind, embedding, guidance)
        network = self.looped["refiner"]
        noise = network(seen, twice(t, guidance), led, added_cond_kwargs=more, return_dict=False)[0]
        return guided(noise, guidance)
