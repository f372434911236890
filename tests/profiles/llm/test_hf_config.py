"""A model's shape from its config.json, its weights counted."""

from __future__ import annotations

import json

import pytest
from servetwin.core import BadInput
from servetwin.profiles.llm.architectures import architecture
from servetwin.profiles.llm.hf_config import from_config, shape_of

#: As published; the counts in models.yaml are those of the checkpoints' tensors.
PUBLISHED = {
    "llama-3.1-70b": {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
                      "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
                      "max_position_embeddings": 131072},
    "qwen3-32b": {"model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64,
                  "num_key_value_heads": 8, "intermediate_size": 25600, "vocab_size": 151936, "head_dim": 128,
                  "max_position_embeddings": 40960},
    "opt-13b": {"model_type": "opt", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
                "ffn_dim": 20480, "vocab_size": 50272, "max_position_embeddings": 2048},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_gives_the_shape_that_is_known(name):
    assert from_config(PUBLISHED[name], where="config.json") == architecture(name)


def test_heads_that_are_wider_than_the_model_make_wider_keys():
    assert architecture("qwen3-32b").kv_bytes_per_token() == 2 * 64 * 8 * 128 * 2


def test_a_model_by_name_or_by_folder(tmp_path):
    folder = tmp_path / "My Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PUBLISHED["qwen3-32b"]))
    assert shape_of(str(folder)) == ("my-model", architecture("qwen3-32b"))
    assert shape_of("meta-llama/Meta-Llama-3.1-8B-Instruct")[0] == "llama-3.1-8b"


def test_a_mixture_of_experts_counts_them_all():
    """30,532,122,624 and 46,702,792,704 weights: the tensors of the published checkpoints."""
    qwen = {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "intermediate_size": 6144, "vocab_size": 151936,
            "max_position_embeddings": 40960, "sliding_window": None, "use_sliding_window": False}  # fmt: skip
    mixtral = {"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
               "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336,
               "vocab_size": 32000, "max_position_embeddings": 32768}  # fmt: skip
    shape = from_config(qwen, where="config.json")
    assert (shape.parameters, shape.experts, shape.experts_per_token) == (30532122624, 128, 8)
    assert (shape.feed_forward, shape.window) == (768, None)
    assert from_config(mixtral, where="config.json").parameters == 46702792704
    with pytest.raises(BadInput, match="mixture of experts cannot be estimated"):
        shape.check_dense("qwen3")
    with pytest.raises(BadInput, match="experts in some layers only"):
        from_config({**qwen, "mlp_only_layers": [0]}, where="config.json")
    with pytest.raises(BadInput, match="key 'num_experts_per_tok' is missing"):
        from_config({**qwen, "num_experts_per_tok": None}, where="config.json")


@pytest.mark.parametrize(
    ("family", "said", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 1024}, 1024),
        ("qwen2", {"sliding_window": 1024}, None),
        ("qwen2", {"sliding_window": 1024, "use_sliding_window": True}, 1024),
        ("llama", {}, None),
    ],
)
def test_attention_that_slides_is_known_and_longer_contexts_are_refused(family, said, window):
    shape = from_config({**PUBLISHED["llama-3.1-70b"], "model_type": family, **said}, where="config.json")
    assert shape.window == window
    shape.check_length(window or 131072, "m")
    if window:
        with pytest.raises(BadInput, match=rf"slides over {window} tokens.*max_model_len {window}"):
            shape.check_length(window + 1, "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers is 'many'"),
        ({"num_key_value_heads": 7}, "64 heads share 7"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
    ],
)
def test_what_does_not_fit_is_told(change, said):
    with pytest.raises(BadInput, match=said):
        from_config({**PUBLISHED["qwen3-32b"], **change}, where="config.json")


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be read"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is no JSON"):
        shape_of(str(tmp_path))
    with pytest.raises(BadInput, match="unknown model 'nothing'"):
        shape_of("nothing")
