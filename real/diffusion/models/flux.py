"""FLUX.1 (Black Forest Labs 2024): a rectified flow with two text encoders, one transformer, a VAE of 16 channels.

Guidance is an input of the network (dev), or there is none (schnell): one row a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind, Sampling
from .shared_networks import (
    CLIP_L,
    CLIP_TOKENS,
    T5_XXL,
    TINY_CLIP,
    TINY_T5,
    build_clip,
    build_t5,
    build_vae,
    clip_prompt,
    decode,
    kl_vae,
    t5_prompt,
    tiny_vae,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CHAIN = (("clip", False), ("t5", False), ("transformer", True), ("vae", False))
_FOLDERS = {"clip": "text_encoder", "t5": "text_encoder_2"}
_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
#: Tokens of a prompt for T5.
T5_TOKENS = {"flux1-dev-1024": 512, "flux1-schnell-1024": 256, "tiny-flux": 16}


def _flux(name: str, title: str, sampling: Sampling, guidance: float, **transformer: Any) -> Kind:
    networks = {
        "transformer": {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": (16, 56, 56),
            **transformer,
        },
        "vae": kl_vae(1024, 16, **_VAE),
        "clip": CLIP_L,
        "t5": T5_XXL,
    }
    return Kind(
        name,
        f"{title}, 1024x1024",
        _CHAIN,
        1024,
        (16, 128, 128),
        networks,
        folders=_FOLDERS,
        largest=4,
        sampling=sampling,
        guidance=guidance,
        precision="bfloat16",
        multiple=2,
        fixed=("clip", "t5"),
    )


_DEV = Sampling("flow", dynamic=(0.5, 1.15, 256, 4096), sampler="flow-euler")
_TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    },
    "vae": tiny_vae(4, **_VAE),
    "clip": TINY_CLIP,
    "t5": TINY_T5,
}


class Flux(DiffusionModel):
    kinds = (
        _flux("flux1-dev-1024", "FLUX.1 dev", _DEV, 3.5, guidance_embeds=True),
        _flux("flux1-schnell-1024", "FLUX.1 schnell", Sampling("flow", sampler="flow-euler"), 0.0),
        Kind(
            "tiny-flux",
            "a tiny FLUX, 16x16",
            _CHAIN,
            16,
            (4, 8, 8),
            _TINY,
            folders=_FOLDERS,
            largest=6,
            sampling=_DEV,
            guidance=3.5,
            precision="bfloat16",
            multiple=2,
            fixed=("clip", "t5"),
        ),
    )

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        if name == "vae":
            return build_vae(config)
        if name == "clip":
            return build_clip(config)
        if name == "t5":
            return build_t5(config)
        made: nn.Module = FluxTransformer2DModel(**config)
        return made

    def prepare(self) -> None:
        self.tokens = T5_TOKENS[self.kind.name]
        self.led = bool(self.kind.networks["transformer"].get("guidance_embeds"))
        self.ids: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        import torch

        return {
            "prompt": ((CLIP_TOKENS,), torch.long),
            "prompt2": ((self.tokens,), torch.long),
            "pooled": ((self.kind.networks["clip"]["hidden_size"],), self.dtype),
            "embedding": ((self.tokens, self.kind.networks["t5"]["d_model"]), self.dtype),
        }

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        prompt = clip_prompt(generator, self.kind.networks["clip"]["vocab_size"])
        return {
            "prompt": prompt,
            "prompt2": t5_prompt(generator, self.kind.networks["t5"]["vocab_size"], self.tokens),
        }

    def clip(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        found = self.networks["clip"](slots["prompt"].index_select(0, index))
        slots["pooled"].index_copy_(0, index, found.pooler_output)

    def t5(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        slots["embedding"].index_copy_(0, index, self.networks["t5"](slots["prompt2"].index_select(0, index))[0])

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        n, c, h, w = x.shape
        words, places = self._positions(h // 2, w // 2)
        # The network takes patches of 2 x 2 as tokens.
        patches = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), c * 4)
        out = self.network(
            hidden_states=patches,
            encoder_hidden_states=slots["embedding"].index_select(0, index),
            pooled_projections=slots["pooled"].index_select(0, index),
            timestep=t.to(x.dtype) / 1000,
            img_ids=places,
            txt_ids=words,
            guidance=guidance if self.led else None,
            return_dict=False,
        )[0]
        velocity: Tensor = out.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
        return velocity

    def _positions(self, high: int, wide: int) -> tuple[Tensor, Tensor]:
        """Of the words and of the patches; made when a size is first run, before its graph is captured."""
        import torch

        found = self.ids.get((high, wide))
        if found is None:
            rows, columns = torch.meshgrid(
                torch.arange(high, device=self.device), torch.arange(wide, device=self.device), indexing="ij"
            )
            places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
            words = torch.zeros(self.tokens, 3, device=self.device, dtype=self.dtype)
            found = self.ids[high, wide] = (words, places.to(self.dtype))
        return found

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        decode(self.networks["vae"], slots, index)
