"""The shape of a language model from the ``config.json`` of its Hugging Face repository.

>>> llama = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
...     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072}
>>> from_config(llama, where="config.json").parameters
8030261248
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from .architectures import Architecture, architecture, architectures

#: Families whose weights are counted here; the last two are mixtures of experts. Others are refused, for their steps
#: are of other parts.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "mixtral", "qwen3_moe")

#: The window of a Mistral whose configuration says nothing (transformers, MistralConfig).
MISTRAL_WINDOW = 4096


def shape_of(model: str) -> tuple[str, Architecture]:
    """Name and shape of a *model*: one of ``models.yaml`` by its name, with or without who published it
    (``meta-llama/Llama-3.1-8B``), or a folder with a ``config.json``, or such a file. Raises `BadInput`."""
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        return _name(path), read_config(path)
    name = model.rpartition("/")[2].lower().removeprefix("meta-").removesuffix("-instruct")
    if name not in architectures():
        right = f"one of {', '.join(architectures())}, or a config.json"
        raise BadInput(f"unknown model {model!r}", right=right)
    return name, architecture(name)


def read_config(path: Path) -> Architecture:
    """The shape that the file at *path* describes. Raises `BadInput`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError:
        raise BadInput("is no JSON", where=str(path), right="the config.json of a model") from None
    if not isinstance(content, dict):
        raise BadInput("holds no mapping", where=str(path), right="the config.json of a model")
    return from_config(content, where=str(path))


def from_config(config: Mapping[str, Any], *, where: str) -> Architecture:
    """The shape that the content of a ``config.json`` describes; *where* it stands is for errors. Raises
    `BadInput`."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise BadInput(f"model_type is {family!r}", where=where, right=f"one of {', '.join(FAMILIES)}")
    if config.get("quantization_config"):
        raise BadInput("quantization_config: quantised weights are not known here", where=where, right="bf16 or fp16")

    def number(*names: str, otherwise: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if value is not None:
                if type(value) is not int or value < 1:
                    raise BadInput(f"{name} is {value!r}", where=where, right="a whole number, 1 or more")
                return value
        if otherwise is None:
            raise BadInput(f"key {names[0]!r} is missing", where=where)
        return otherwise

    hidden, layers, heads = number("hidden_size"), number("num_hidden_layers"), number("num_attention_heads")
    kv_heads = number("num_key_value_heads", otherwise=heads)
    head = number("head_dim", otherwise=max(hidden // heads, 1))
    experts = number("num_experts", "num_local_experts") if family in ("mixtral", "qwen3_moe") else None
    chosen = number("num_experts_per_tok") if experts else None
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise BadInput("experts in some layers only are not known here", where=where, right="experts in every layer")
    wide = number("moe_intermediate_size") if family == "qwen3_moe" else number("ffn_dim", "intermediate_size")
    words, positions = number("vocab_size"), number("max_position_embeddings")
    slides = _slides(config)
    if heads % kv_heads:
        raise BadInput(f"{heads} heads share {kv_heads} of keys", where=where, right="a divisor of the heads")
    queries, keys = heads * head, kv_heads * head
    attention = hidden * (2 * queries + 2 * keys)
    if family == "opt":
        biases = queries + 2 * keys + hidden + wide + hidden
        each = attention + 2 * hidden * wide + biases + 4 * hidden
        rest = words * hidden + (positions + 2) * hidden + 2 * hidden
    else:
        biased = family == "qwen2" or config.get("attention_bias") is True
        each = attention + (experts or 1) * 3 * hidden * wide + (experts or 0) * hidden + 2 * hidden
        each += (queries + 2 * keys if biased else 0) + (2 * head if family.startswith("qwen3") else 0)
        rest = words * hidden * (1 if config.get("tie_word_embeddings") else 2) + hidden
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=wide,
        vocabulary=words,
        positions=positions,
        parameters=layers * each + rest,
        head_dim=head if head != hidden // heads else None,
        gated=family != "opt",
        experts=experts,
        experts_per_token=chosen,
        window=number("sliding_window", otherwise=MISTRAL_WINDOW) if slides else None,
    )


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether attention slides: Mistral's does unless its configuration says null, Qwen's only if it says so."""
    said = "sliding_window" in config or config["model_type"] == "mistral"
    if not said or config.get("sliding_window", MISTRAL_WINDOW) is None:
        return False
    return bool(config.get("use_sliding_window", not str(config["model_type"]).startswith("qwen")))


def _name(path: Path) -> str:
    """The name of a model by the folder of its configuration."""
    folder = path.resolve().parent.name.lower()
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folder).strip("-._")
    return kept or "model"
