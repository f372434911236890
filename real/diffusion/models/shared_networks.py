"""What several models have in common: text encoders, VAEs, prompts. (No model of its own.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..kind import Betas

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..diffusion_model import Slot

#: Tokens of a prompt, as CLIP takes them.
CLIP_TOKENS = 77
#: Betas of Stable Diffusion and its kin.
SCALED_BETAS: Betas = (0.00085, 0.012, "scaled_linear")

#: The text encoder of Stable Diffusion 1 and all later ones: CLIP ViT-L/14.
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
#: OpenCLIP ViT-bigG/14, the second one of SDXL and SD3.
CLIP_G: dict[str, Any] = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
#: The encoder of T5 v1.1 XXL.
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
TINY_CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 77,
    "bos_token_id": 998,
    "eos_token_id": 999,
    "pad_token_id": 1,
}
TINY_T5: dict[str, Any] = {
    "vocab_size": 1000,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}


def kl_vae(image: int, channels: int = 4, **more: Any) -> dict[str, Any]:
    """The VAE of Stable Diffusion and its kin: images eight times as high and wide as latents."""
    return {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
        "sample_size": image,
        **more,
    }


def tiny_vae(channels: int = 4, **more: Any) -> dict[str, Any]:
    """The same for tests: twice as high and wide."""
    return {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 8,
        "sample_size": 16,
        **more,
    }


def build_clip(config: Mapping[str, Any], *, projected: bool = False) -> nn.Module:
    """A text encoder of CLIP; *projected* ones give what images are compared with, too."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    made: nn.Module = (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))
    return made


def build_t5(config: Mapping[str, Any]) -> nn.Module:
    """The encoder of T5."""
    from transformers import T5Config, T5EncoderModel

    made: nn.Module = T5EncoderModel(T5Config(**config))
    return made


def build_vae(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    made: nn.Module = AutoencoderKL(**config)
    return made


def clip_prompt(generator: torch.Generator, vocabulary: int) -> Tensor:
    """The tokens of a prompt as long as CLIP takes it, its last one the end."""
    import torch

    prompt = torch.randint(2, vocabulary - 2, (CLIP_TOKENS,), generator=generator)
    prompt[0], prompt[-1] = vocabulary - 2, vocabulary - 1
    return prompt


def t5_prompt(generator: torch.Generator, vocabulary: int, tokens: int) -> Tensor:
    """The tokens of a prompt, its last one the end (1)."""
    import torch

    prompt = torch.randint(2, vocabulary, (tokens,), generator=generator)
    prompt[-1] = 1
    return prompt


def clip_empty(vocabulary: int, device: torch.device, fill: int | None = None) -> Tensor:
    """The tokens of no prompt (1 x tokens): a beginning, an end, and what prompts are filled up with (None: ends)."""
    import torch

    empty = torch.full((1, CLIP_TOKENS), vocabulary - 1 if fill is None else fill, device=device)
    empty[0, 0], empty[0, 1] = vocabulary - 2, vocabulary - 1
    return empty


def t5_empty(tokens: int, device: torch.device) -> Tensor:
    """The tokens of no prompt (1 x tokens): an end, and what prompts are filled up with."""
    import torch

    empty = torch.zeros(1, tokens, dtype=torch.long, device=device)
    empty[0, 0] = 1
    return empty


def twice(x: Tensor, guidance: Tensor | None) -> Tensor:
    """What both rows of a request have in common; once where there is no *guidance*."""
    import torch

    return x if guidance is None else torch.cat([x, x])


def both(blind: Tensor, led: Tensor, guidance: Tensor | None) -> Tensor:
    """The same for all requests without the prompt (*blind*, one row or as many), then each one's with it (*led*),
    which is all where there is no *guidance*."""
    import torch

    return led if guidance is None else torch.cat([blind.expand(led.shape[0], *blind.shape[1:]), led])


def masked_slots(tokens: int, width: int, dtype: torch.dtype) -> dict[str, Slot]:
    """The slots of prompts of up to so many *tokens*, of which T5 makes an embedding so *width*."""
    import torch

    return {
        "prompt": ((tokens,), torch.long),
        "mask": ((tokens,), dtype),
        "embedding": ((tokens, width), dtype),
    }


def masked_prompt(generator: torch.Generator, vocabulary: int, tokens: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A prompt that is shorter than the longest (*tokens*), filled up with what is not looked at."""
    import torch

    length = int(torch.randint(tokens // 4, tokens, (), generator=generator))
    prompt, mask = torch.zeros(tokens, dtype=torch.long), torch.zeros(tokens, dtype=dtype)
    prompt[:length] = t5_prompt(generator, vocabulary, length)
    mask[:length] = 1
    return {"prompt": prompt, "mask": mask}


def masked_t5(encoder: Any, prompt: Tensor, mask: Tensor) -> Tensor:
    """What *encoder* makes of *prompt*, looking only where *mask* is 1."""
    import torch

    # As a bias of attention, for which nothing of the mask must be known.
    least = float(torch.finfo(mask.dtype).min)
    bias = ((1 - mask) * least)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    found: Tensor = encoder(prompt, attention_mask=bias)[0]
    return found


def guided(noise: Tensor, guidance: Tensor | None) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, 2207.12598) of predictions without, then with the prompt."""
    if guidance is None:
        return noise
    blind, led = noise.chunk(2)
    wide = (-1, *(1,) * (noise.dim() - 1))
    return blind + guidance.view(wide).to(noise.dtype) * (led - blind)


def pixels(x: Tensor) -> Tensor:
    """From -1..1 to bytes."""
    import torch

    return ((x.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def decode(vae: Any, slots: Mapping[str, Tensor], index: Tensor) -> None:
    """Images of the latents at *index*, by a KL autoencoder."""
    latents = slots["latents"].index_select(0, index) / vae.config.scaling_factor
    if vae.config.shift_factor:
        latents = latents + vae.config.shift_factor
    images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    slots["image"].index_copy_(0, index, pixels(images))
