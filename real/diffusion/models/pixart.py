"""PixArt-Sigma (Chen et al. 2024, 2403.04692): a diffusion transformer that looks at a prompt, with T5 and a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind, Sampling
from .shared_networks import (
    T5_XXL,
    TINY_T5,
    both,
    build_t5,
    build_vae,
    decode,
    guided,
    kl_vae,
    masked_prompt,
    masked_slots,
    masked_t5,
    t5_empty,
    tiny_vae,
    twice,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CHAIN = (("t5", False), ("transformer", True), ("vae", False))
_SAMPLING = Sampling(sampler="dpm++2m")
#: Tokens of a prompt.
T5_TOKENS = {"pixart-sigma-1024": 300, "tiny-pixart": 16}


def _transformer(layers: int, heads: int, width: int, sample: int, caption: int, scale: int) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width,
        "cross_attention_dim": heads * width,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": sample,
        "patch_size": 2,
        "caption_channels": caption,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "use_additional_conditions": False,
        "interpolation_scale": scale,
    }


class PixArt(DiffusionModel):
    kinds = (
        Kind(
            "pixart-sigma-1024",
            "PixArt-Sigma XL/2, 1024x1024",
            _CHAIN,
            1024,
            (4, 128, 128),
            {
                "transformer": _transformer(28, 16, 72, 128, 4096, 2),
                "vae": kl_vae(1024, scaling_factor=0.13025, force_upcast=False),
                "t5": T5_XXL,
            },
            folders={"t5": "text_encoder"},
            largest=8,
            sampling=_SAMPLING,
            guidance=4.5,
            rows=2,
            multiple=2,
            unguided=True,
            fixed=("t5",),
        ),
        Kind(
            "tiny-pixart",
            "a tiny PixArt, 16x16",
            _CHAIN,
            16,
            (4, 8, 8),
            {
                "transformer": _transformer(2, 2, 16, 8, 32, 1),
                "vae": tiny_vae(scaling_factor=0.13025),
                "t5": TINY_T5,
            },
            folders={"t5": "text_encoder"},
            largest=6,
            sampling=_SAMPLING,
            guidance=4.5,
            rows=2,
            multiple=2,
            unguided=True,
            fixed=("t5",),
        ),
    )

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import PixArtTransformer2DModel

        if name == "vae":
            return build_vae(config)
        if name == "t5":
            return build_t5(config)
        made: nn.Module = PixArtTransformer2DModel(**config)
        return made

    def prepare(self) -> None:
        """What the network is led by without a prompt: what T5 makes of an empty one, of which it sees the end."""
        import torch

        self.tokens = T5_TOKENS[self.kind.name]
        empty = t5_empty(self.tokens, self.device)
        self.blind_mask = torch.zeros(1, self.tokens, dtype=self.dtype, device=self.device)
        self.blind_mask[0, 0] = 1
        self.blind = masked_t5(self.networks["t5"], empty, self.blind_mask)

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        return masked_slots(self.tokens, self.kind.networks["t5"]["d_model"], self.dtype)

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        return masked_prompt(generator, self.kind.networks["t5"]["vocab_size"], self.tokens, self.dtype)

    def t5(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        prompt, mask = (slots[name].index_select(0, index) for name in ("prompt", "mask"))
        slots["embedding"].index_copy_(0, index, masked_t5(self.networks["t5"], prompt, mask))

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        embedding, mask = (slots[name].index_select(0, index) for name in ("embedding", "mask"))
        noise = self.network(
            twice(x, guidance),
            encoder_hidden_states=both(self.blind, embedding, guidance),
            encoder_attention_mask=both(self.blind_mask, mask, guidance),
            timestep=twice(t, guidance),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        # The rest is the learned variance, which no sampler here uses.
        return guided(noise[:, : x.shape[1]], guidance)

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        decode(self.networks["vae"], slots, index)
