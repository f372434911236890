"""The models that can be served: their modules and sizes. No torch is needed to read this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from servetwin.core import BadInput, Module, Pipeline

Family = Literal["sd", "dit", "palette"]
Betas = tuple[float, float, Literal["linear", "scaled_linear"]]

#: The modules of each family in order; the second says whether it loops.
MODULES: dict[Family, tuple[tuple[str, bool], ...]] = {
    "sd": (("clip", False), ("unet", True), ("vae", False), ("safety", False)),
    "dit": (("dit", True), ("vae", False)),
    "palette": (("unet", True),),
}

#: How NeuStream deploys each family: a worker for each of these groups of modules.
PLACEMENT: dict[Family, tuple[tuple[str, ...], ...]] = {
    "sd": (("clip",), ("unet",), ("vae", "safety")),
    "dit": (("dit",), ("vae",)),
    "palette": (("unet",),),
}


@dataclass(frozen=True)
class Kind:
    """A model as it is served.

    *image* is its edge in pixels, *latent* the shape (channels, height, width) of what the loop works on,
    *networks* the configuration of each network. *largest* is the batch up to which serving and profiling go by
    default. *betas* are the first and last beta of the noise schedule and how they are spaced.
    """

    name: str
    family: Family
    title: str
    image: int
    latent: tuple[int, int, int]
    networks: Mapping[str, Mapping[str, Any]] = field(repr=False)
    largest: int = 12
    betas: Betas = (1e-4, 0.02, "linear")
    guidance: float = 1.0

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(name for name, _ in MODULES[self.family])

    @property
    def loop(self) -> str:
        """The module that iterates."""
        return next(name for name, loops in MODULES[self.family] if loops)

    @property
    def placement(self) -> list[list[str]]:
        """A worker for each of these groups: what NeuStream does."""
        return [list(group) for group in PLACEMENT[self.family]]

    @property
    def rows(self) -> int:
        """Rows in the loop's network per request: two with classifier-free guidance."""
        return 2 if self.family == "sd" else 1

    def pipeline(self) -> Pipeline:
        return Pipeline.chain(*(Module(n, loop=loops) for n, loops in MODULES[self.family]), name=self.name)


def find(name: str) -> Kind:
    """The kind of this name. Raises `BadInput`."""
    if name not in KINDS:
        raise BadInput(f"unknown model {name!r}", right=f"one of {', '.join(KINDS)}")
    return KINDS[name]


_SD_BETAS: Betas = (0.00085, 0.012, "scaled_linear")
_CLIP_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def _sd(name: str, image: int, title: str) -> Kind:
    networks: dict[str, dict[str, Any]] = {
        "unet": {
            "sample_size": image // 8,
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "layers_per_block": 2,
        },
        "vae": _vae(image),
        "clip": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
        },
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
            "text_config": {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, **_CLIP_IDS},
        },
    }
    return Kind(name, "sd", title, image, (4, image // 8, image // 8), networks, 12, _SD_BETAS, 7.5)


def _vae(image: int) -> dict[str, Any]:
    return {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": image,
        "scaling_factor": 0.18215,
    }


def _dit(name: str, title: str, heads: int, width: int, layers: int, largest: int) -> Kind:
    transformer = {
        "num_attention_heads": heads,
        "attention_head_dim": width,
        "num_layers": layers,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 32,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    }
    return Kind(name, "dit", title, 256, (4, 32, 32), {"dit": transformer, "vae": _vae(256)}, largest)


_TINY_VAE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
    "scaling_factor": 0.18215,
}

_ALL = [
    _sd("sd15-512", 512, "Stable Diffusion v1.5, 512x512"),
    _sd("sd15-256", 256, "Stable Diffusion v1.5, 256x256"),
    _dit("dit-s2-256", "DiT-S/2, 256x256", 6, 64, 12, 32),
    _dit("dit-xl2-256", "DiT-XL/2, 256x256", 16, 72, 28, 20),
    Kind(
        "palette-256",
        "palette",
        "Palette, image to image, 256x256",
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
        largest=12,
    ),
    Kind(
        "tiny-sd",
        "sd",
        "a tiny Stable Diffusion, 16x16",
        16,
        (4, 8, 8),
        {
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
            "vae": _TINY_VAE,
            "clip": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "projection_dim": 32,
                "vocab_size": 1000,
                "max_position_embeddings": 77,
                **_CLIP_IDS,
            },
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
                "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, **_CLIP_IDS},
            },
        },
        largest=6,
        betas=_SD_BETAS,
        guidance=7.5,
    ),
    Kind(
        "tiny-dit",
        "dit",
        "a tiny DiT, 16x16",
        16,
        (4, 8, 8),
        {
            "dit": {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "in_channels": 4,
                "out_channels": 8,
                "sample_size": 8,
                "patch_size": 2,
                "num_embeds_ada_norm": 1000,
                "norm_type": "ada_norm_zero",
                "norm_elementwise_affine": False,
                "activation_fn": "gelu-approximate",
                "attention_bias": True,
            },
            "vae": _TINY_VAE,
        },
        largest=6,
    ),
    Kind(
        "tiny-palette",
        "palette",
        "a tiny Palette, 16x16",
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
    ),
]

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
