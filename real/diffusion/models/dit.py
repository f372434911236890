"""DiT (Peebles and Xie 2023, 2212.09748): a transformer led by a class, and a VAE. Without guidance, as NeuStream
serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind
from .shared_networks import build_vae, decode, kl_vae, tiny_vae

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CHAIN = (("dit", True), ("vae", False))
CLASSES = 1000


def _transformer(heads: int, width: int, layers: int, latent: int) -> dict[str, Any]:
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width,
        "num_layers": layers,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": latent,
        "patch_size": 2,
        "num_embeds_ada_norm": CLASSES,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    }


def _kind(name: str, title: str, heads: int, width: int, layers: int, largest: int) -> Kind:
    networks = {"dit": _transformer(heads, width, layers, 32), "vae": kl_vae(256, scaling_factor=0.18215)}
    return Kind(
        name,
        title,
        _CHAIN,
        256,
        (4, 32, 32),
        networks,
        folders={"dit": "transformer"},
        largest=largest,
        multiple=2,
        square=True,
    )


class DiT(DiffusionModel):
    kinds = (
        _kind("dit-s2-256", "DiT-S/2, 256x256", 6, 64, 12, 32),
        _kind("dit-xl2-256", "DiT-XL/2, 256x256", 16, 72, 28, 20),
        Kind(
            "tiny-dit",
            "a tiny DiT, 16x16",
            _CHAIN,
            16,
            (4, 8, 8),
            {"dit": _transformer(2, 16, 2, 8), "vae": tiny_vae(scaling_factor=0.18215)},
            folders={"dit": "transformer"},
            largest=6,
            multiple=2,
            square=True,
        ),
    )

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import DiTTransformer2DModel

        if name == "vae":
            return build_vae(config)
        made: nn.Module = DiTTransformer2DModel(**config)
        return made

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        import torch

        return {"label": ((), torch.long)}

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        import torch

        return {"label": torch.randint(0, CLASSES, (), generator=generator)}

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        label = slots["label"].index_select(0, index)
        noise: Tensor = self.network(x, timestep=t, class_labels=label, return_dict=False)[0]
        return noise[:, : x.shape[1]]  # the rest is the learned variance, which no sampler here uses

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        decode(self.networks["vae"], slots, index)
