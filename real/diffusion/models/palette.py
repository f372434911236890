"""Palette (Saharia et al. 2022, 2111.05826): image to image, a U-Net that works on pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind
from .shared_networks import pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CHAIN = (("unet", True),)


class Palette(DiffusionModel):
    kinds = (
        Kind(
            "palette-256",
            "Palette, image to image, 256x256",
            _CHAIN,
            256,
            (3, 256, 256),
            {
                "unet": {
                    "sample_size": 256,
                    "in_channels": 6,
                    "out_channels": 3,
                    "block_out_channels": (64, 128, 256, 512),
                    "down_block_types": ("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
                    "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
                    "layers_per_block": 2,
                    "attention_head_dim": 32,
                }
            },
            multiple=8,
        ),
        Kind(
            "tiny-palette",
            "a tiny Palette, 16x16",
            _CHAIN,
            16,
            (3, 16, 16),
            {
                "unet": {
                    "sample_size": 16,
                    "in_channels": 6,
                    "out_channels": 3,
                    "block_out_channels": (16, 32),
                    "down_block_types": ("DownBlock2D",) * 2,
                    "up_block_types": ("UpBlock2D",) * 2,
                    "layers_per_block": 1,
                    "attention_head_dim": 8,
                    "norm_num_groups": 8,
                }
            },
            largest=6,
            multiple=2,
        ),
    )
    convolutional = True

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import UNet2DModel

        made: nn.Module = UNet2DModel(**config)
        return made

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        return {"condition": (latent, self.dtype)}

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        import torch

        return {"condition": torch.rand(latent, generator=generator).mul_(2).sub_(1).to(self.dtype)}

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        import torch

        condition = slots["condition"].index_select(0, index)
        noise: Tensor = self.network(torch.cat([x, condition], dim=1), t, return_dict=False)[0]
        return noise

    def output(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        slots["image"].index_copy_(0, index, pixels(slots["latents"].index_select(0, index)))
