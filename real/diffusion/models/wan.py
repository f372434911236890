"""Wan 2.1 (2503.20314), the small one: videos from text, by a rectified flow on latents of several frames.

The transformer is served in bfloat16 on a GPU, the VAE in single precision, as its authors do.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind, Sampling
from .shared_networks import (
    T5_XXL,
    TINY_T5,
    both,
    guided,
    masked_prompt,
    masked_slots,
    masked_t5,
    pixels,
    t5_empty,
    twice,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CHAIN = (("t5", False), ("transformer", True), ("vae", False))
_SAMPLING = Sampling("flow", shift=3.0, sampler="flow-euler")
#: Tokens of a prompt.
T5_TOKENS = {"wan-1.3b-480p": 512, "tiny-wan": 16}

_TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    },
    "vae": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "latents_mean": [-0.7, 0.1, 0.4, -0.3],
        "latents_std": [2.8, 1.4, 2.3, 2.6],
        "scale_factor_temporal": 2,
        "scale_factor_spatial": 2,
    },
    "t5": TINY_T5,
}


def _kind(name: str, title: str, frames: int, size: tuple[int, int], latent: tuple[int, ...], **more: Any) -> Kind:
    return Kind(
        name,
        title,
        _CHAIN,
        size[0],
        latent,
        width=size[1],
        frames=frames,
        folders={"t5": "text_encoder"},
        sampling=_SAMPLING,
        guidance=5.0,
        rows=2,
        precision="bfloat16",
        multiple=2,
        unguided=True,
        fixed=("t5",),
        **more,
    )


class Wan(DiffusionModel):
    kinds = (
        _kind(
            "wan-1.3b-480p",
            "Wan 2.1 1.3B, 81 frames of 480x832",
            81,
            (480, 832),
            (16, 21, 60, 104),
            networks={
                "transformer": {
                    "num_attention_heads": 12,
                    "attention_head_dim": 128,
                    "ffn_dim": 8960,
                    "num_layers": 30,
                },
                "vae": {},
                "t5": {**T5_XXL, "vocab_size": 256384},
            },
            largest=2,
        ),
        _kind("tiny-wan", "a tiny Wan, 5 frames of 16x32", 5, (16, 32), (4, 3, 8, 16), networks=_TINY, largest=4),
    )

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import AutoencoderKLWan, WanTransformer3DModel
        from transformers import UMT5Config, UMT5EncoderModel

        if name == "t5":
            encoder: nn.Module = UMT5EncoderModel(UMT5Config(**config))
            return encoder
        made: nn.Module = (AutoencoderKLWan if name == "vae" else WanTransformer3DModel)(**config)
        return made

    def dtype_of(self, name: str, network: nn.Module) -> torch.dtype:
        import torch

        return torch.float32 if name == "vae" else self.dtype

    def prepare(self) -> None:
        """What the network is led by without a prompt, and how latents were scaled in training."""
        import torch

        self.tokens = T5_TOKENS[self.kind.name]
        mask = torch.zeros(1, self.tokens, dtype=self.dtype, device=self.device)
        mask[0, 0] = 1
        self.blind = self._encoded(t5_empty(self.tokens, self.device), mask)
        config: Any = self.networks["vae"].config
        wide = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(config.latents_mean, device=self.device).view(wide)
        self.deviation = torch.tensor(config.latents_std, device=self.device).view(wide)
        self.lock = threading.Lock()  # decoding keeps what it knows of earlier frames in the network

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        return masked_slots(self.tokens, self.kind.networks["t5"]["d_model"], self.dtype)

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        return masked_prompt(generator, self.kind.networks["t5"]["vocab_size"], self.tokens, self.dtype)

    def _encoded(self, prompt: Tensor, mask: Tensor) -> Tensor:
        """What the encoder makes of *prompt*; zeros where *mask* is 0."""
        return masked_t5(self.networks["t5"], prompt, mask) * mask[:, :, None]

    def t5(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        prompt, mask = (slots[name].index_select(0, index) for name in ("prompt", "mask"))
        slots["embedding"].index_copy_(0, index, self._encoded(prompt, mask))

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        led = both(self.blind, slots["embedding"].index_select(0, index), guidance)
        velocity = self.network(twice(x, guidance), twice(t, guidance), led, return_dict=False)[0]
        return guided(velocity, guidance)

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        latents = slots["latents"].index_select(0, index) * self.deviation + self.mean
        network: Any = self.networks["vae"]
        with self.lock:
            video = network.decode(latents, return_dict=False)[0]
        slots["image"].index_copy_(0, index, pixels(video))
