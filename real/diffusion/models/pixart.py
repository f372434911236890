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
    t5_empty,
    t5_prompt,
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
        self.blind = self._encoded(empty, self.blind_mask)

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        import torch

        return {
            "prompt": ((self.tokens,), torch.long),
            "mask": ((self.tokens,), self.dtype),
            "embedding": ((self.tokens, self.kind.networks["t5"]["d_model"]), self.dtype),
        }

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        """A prompt that is shorter than the longest, filled up with what is not looked at."""
        import torch

        length = int(torch.randint(self.tokens // 4, self.tokens, (), generator=generator))
        prompt, mask = torch.zeros(self.tokens, dtype=torch.long), torch.zeros(self.tokens, dtype=self.dtype)
        prompt[:length] = t5_prompt(generator, self.kind.networks["t5"]["vocab_size"], length)
        mask[:length] = 1
        return {"prompt": prompt, "mask": mask}

    def _encoded(self, prompt: Tensor, mask: Tensor) -> Tensor:
        # As a bias of attention, for which nothing of the mask must be known.
        bias = ((1 - mask) * self._least)[:, None, None, :].expand(-1, 1, self.tokens, -1)
        found: Tensor = self.networks["t5"](prompt, attention_mask=bias)[0]
        return found

    @property
    def _least(self) -> float:
        import torch

        return float(torch.finfo(self.dtype).min)

    def t5(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        prompt, mask = (slots[name].index_select(0, index) for name in ("prompt", "mask"))
        slots["embedding"].index_copy_(0, index, self._encoded(prompt, mask))

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
