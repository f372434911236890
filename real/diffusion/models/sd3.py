"""Stable Diffusion 3 (Esser et al. 2024, 2403.03206), the medium one: a rectified flow with three text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..diffusion_model import DiffusionModel, Slot
from ..kind import Kind, Sampling
from .shared_networks import (
    CLIP_G,
    CLIP_L,
    CLIP_TOKENS,
    T5_XXL,
    TINY_CLIP,
    TINY_T5,
    both,
    build_clip,
    build_t5,
    build_vae,
    clip_empty,
    clip_prompt,
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

_CHAIN = (("clip", False), ("clip2", False), ("t5", False), ("transformer", True), ("vae", False))
_FOLDERS = {"clip": "text_encoder", "clip2": "text_encoder_2", "t5": "text_encoder_3"}
_SAMPLING = Sampling("flow", shift=3.0, sampler="flow-euler")
_NO_CONVOLUTIONS = {"use_quant_conv": False, "use_post_quant_conv": False}

_MEDIUM: dict[str, dict[str, Any]] = {
    "transformer": {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    "vae": kl_vae(1024, 16, scaling_factor=1.5305, shift_factor=0.0609, **_NO_CONVOLUTIONS),
    "clip": CLIP_L,
    "clip2": CLIP_G,
    "t5": T5_XXL,
}
_TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 80,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 8,
    },
    "vae": tiny_vae(4, scaling_factor=1.5305, shift_factor=0.0609, **_NO_CONVOLUTIONS),
    "clip": TINY_CLIP,
    "clip2": {**TINY_CLIP, "hidden_act": "gelu"},
    "t5": {**TINY_T5, "d_model": 80},
}
#: Tokens of a prompt for T5.
T5_TOKENS = {"sd3-medium-1024": 256, "tiny-sd3": 16}
_EMBEDDINGS = ("embedding", "embedding2", "embedding3")


def _kind(name: str, title: str, image: int, latent: tuple[int, ...], networks: dict[str, Any], largest: int) -> Kind:
    return Kind(
        name,
        title,
        _CHAIN,
        image,
        latent,
        networks,
        folders=_FOLDERS,
        largest=largest,
        sampling=_SAMPLING,
        guidance=7.0,
        rows=2,
        multiple=2,
        most=networks["transformer"]["pos_embed_max_size"] * 2 * image // latent[-1],
        unguided=True,
        fixed=("clip", "clip2", "t5"),
    )


class StableDiffusion3(DiffusionModel):
    kinds = (
        _kind("sd3-medium-1024", "Stable Diffusion 3 medium, 1024x1024", 1024, (16, 128, 128), _MEDIUM, 8),
        _kind("tiny-sd3", "a tiny Stable Diffusion 3, 16x16", 16, (4, 8, 8), _TINY, 6),
    )

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        from diffusers import SD3Transformer2DModel

        if name == "vae":
            return build_vae(config)
        if name in ("clip", "clip2"):
            return build_clip(config, projected=True)
        if name == "t5":
            return build_t5(config)
        made: nn.Module = SD3Transformer2DModel(**config)
        return made

    def prepare(self) -> None:
        """What the network is led by without a prompt: what the encoders make of an empty one."""
        self.tokens = T5_TOKENS[self.kind.name]
        vocabulary = self.kind.networks["clip"]["vocab_size"]
        first, pooled = self._clip("clip", clip_empty(vocabulary, self.device))
        # The second encoder's prompts are filled up with its first token, "!".
        second, pooled2 = self._clip("clip2", clip_empty(vocabulary, self.device, fill=0))
        third = self.networks["t5"](t5_empty(self.tokens, self.device))[0]
        self.blind, self.blind_pooled = [first, second, third], [pooled, pooled2]

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        import torch

        sizes = self.kind.networks
        return {
            "prompt": ((CLIP_TOKENS,), torch.long),
            "prompt2": ((CLIP_TOKENS,), torch.long),
            "prompt3": ((self.tokens,), torch.long),
            "embedding": ((CLIP_TOKENS, sizes["clip"]["hidden_size"]), self.dtype),
            "embedding2": ((CLIP_TOKENS, sizes["clip2"]["hidden_size"]), self.dtype),
            "embedding3": ((self.tokens, sizes["t5"]["d_model"]), self.dtype),
            "pooled": ((sizes["clip"]["projection_dim"],), self.dtype),
            "pooled2": ((sizes["clip2"]["projection_dim"],), self.dtype),
        }

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        prompt = clip_prompt(generator, self.kind.networks["clip"]["vocab_size"])
        words = t5_prompt(generator, self.kind.networks["t5"]["vocab_size"], self.tokens)
        return {"prompt": prompt, "prompt2": prompt, "prompt3": words}

    def _clip(self, name: str, prompt: Tensor) -> tuple[Tensor, Tensor]:
        found = self.networks[name](prompt, output_hidden_states=True)
        return found.hidden_states[-2], found.text_embeds

    def clip(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        embedding, pooled = self._clip("clip", slots["prompt"].index_select(0, index))
        slots["embedding"].index_copy_(0, index, embedding)
        slots["pooled"].index_copy_(0, index, pooled)

    def clip2(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        embedding, pooled = self._clip("clip2", slots["prompt2"].index_select(0, index))
        slots["embedding2"].index_copy_(0, index, embedding)
        slots["pooled2"].index_copy_(0, index, pooled)

    def t5(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        slots["embedding3"].index_copy_(0, index, self.networks["t5"](slots["prompt3"].index_select(0, index))[0])

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        import torch
        from torch.nn import functional

        def seen(blind: Tensor, name: str) -> Tensor:
            return both(blind, slots[name].index_select(0, index), guidance)

        first, second, third = map(seen, self.blind, _EMBEDDINGS)
        clips = torch.cat([first, second], dim=-1)
        clips = functional.pad(clips, (0, third.shape[-1] - clips.shape[-1]))
        velocity = self.network(
            hidden_states=twice(x, guidance),
            timestep=twice(t, guidance),
            encoder_hidden_states=torch.cat([clips, third], dim=-2),
            pooled_projections=torch.cat(list(map(seen, self.blind_pooled, ("pooled", "pooled2"))), dim=-1),
            return_dict=False,
        )[0]
        return guided(velocity, guidance)

    def vae(self, slots: Mapping[str, Tensor], index: Tensor) -> None:
        decode(self.networks["vae"], slots, index)
