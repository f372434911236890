"""Checkpoints in diffusers' layout: whether one is of the model that is to be served, and its networks.

What does not fit is a `BadInput` that names the folder, and what would fit: the shapes of its tensors, how its
scheduler says that it was trained, weights that are missing, torn or of another type. Nothing is served with weights
that were never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from servetwin.core import BadInput
from torch import nn

from .kind import Kind, Prediction, Sampling

#: What of a VAE's configuration changes how latents are decoded, and must be as in the model's own.
VAE_EXTRAS = ("shift_factor", "latents_mean", "latents_std")
#: Files with weights, as diffusers and transformers call them.
WEIGHTS = ("*.safetensors", "*.bin")
#: Index tensors that old versions stored beside the weights; they are computed now.
COMPUTED = ("position_ids",)


def check(kind: Kind, weights: Path) -> None:
    """Raise `BadInput` unless *weights* holds a checkpoint of *kind*, as far as its files' heads tell: no tensor is
    read."""
    for name in kind.networks:
        folder = _folder(kind, name, weights)
        _config(folder)
        _heads(folder)
    as_trained(kind, weights)


def load(kind: Kind, name: str, weights: Path, make: Any, plain: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network *name* of the checkpoint *weights*; *plain* is the same of *kind*, on torch's meta device.

    Raises `BadInput` if a tensor is missing, has no place in it, or has another shape than that of *kind*.
    """
    import transformers

    folder = _folder(kind, name, weights)
    config = _config(folder)
    _compatible(kind, name, folder, config, plain)
    _heads(folder)
    try:
        transformers.utils.logging.disable_progress_bar()
        network, told = make.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError) as problem:
        text = " ".join(str(problem).split())
        raise BadInput(f"its weights cannot be read: {text[:300]}", where=str(folder), right=_wanted(kind)) from None
    _complete(kind, folder, told)
    _same_shapes(kind, name, folder, plain, network)
    found: nn.Module = network
    return found


def _wanted(kind: Kind) -> str:
    return f"a checkpoint of {kind.title}, in diffusers' layout"


def _folder(kind: Kind, name: str, weights: Path) -> Path:
    folder = weights / kind.folders.get(name, name)
    if folder.is_dir():
        return folder
    if name == "safety":
        what = "the checkpoint has no safety checker, and the pipeline has one"
        right = f"one with a safety checker, for {kind.name}; or a pipeline without it"
        raise BadInput(what, where=str(folder), right=right)
    raise BadInput("the checkpoint has no such folder", where=str(folder), right=_wanted(kind))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("the checkpoint has no such file", where=str(path), right="diffusers' layout") from None
    except (OSError, ValueError) as problem:
        raise BadInput(f"this cannot be read: {problem}", where=str(path), right="a JSON file") from None
    if not isinstance(found, dict):
        raise BadInput("this holds no configuration", where=str(path), right="a JSON file with keys and values")
    return found


def _config(folder: Path) -> dict[str, Any]:
    return _read(folder / "config.json")


def _heads(folder: Path) -> None:
    """Raise `BadInput` unless there are weights in *folder*, whole files as their heads say, of floating point."""
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise BadInput("there are no weights in it", where=str(folder), right="a file .safetensors or .bin")
    for index in folder.glob("*.index.json"):
        for part in set(_read(index).get("weight_map", {}).values()):
            if not (folder / part).is_file():
                raise BadInput(f"its part {part} is missing", where=str(folder), right=f"all parts of {index.name}")
    for file in files:
        if file.suffix == ".safetensors":
            _head(file)


def _head(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            types = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise BadInput(f"this file is torn: {problem}", where=str(file), right="the whole file") from None
    for key, kind in types.items():
        if not kind.startswith(("F", "BF")) and not key.endswith(COMPUTED):
            what = f"{key} is of type {kind}: quantised weights are not served"
            raise BadInput(what, where=str(file), right="floating point: F32, F16 or BF16")


def _compatible(kind: Kind, name: str, folder: Path, config: Mapping[str, Any], plain: nn.Module) -> None:
    """What does not show in the shapes of tensors."""
    said = config.get("_class_name") or (config.get("architectures") or [None])[0]
    wanted = type(plain).__name__
    # Text encoders of old checkpoints were saved with a class of their own for the same network.
    if said is not None and said != wanted and not (name == "safety" and said == "StableDiffusionSafetyChecker"):
        raise BadInput(
            f"this is a {said}", where=str(folder / "config.json"), right=f"a {wanted}, as in {kind.title}"
        )
    if name == "vae":
        for key in VAE_EXTRAS:
            if config.get(key) != kind.networks[name].get(key):
                what = f"latents with {key} {config.get(key)} are not those of {kind.name}"
                raise BadInput(what, where=str(folder / "config.json"), right=_wanted(kind))


def _complete(kind: Kind, folder: Path, told: Mapping[str, Any]) -> None:
    for what, says in (
        ("mismatched_keys", "has another shape than its configuration says"),
        ("missing_keys", "is missing in its weights"),
        ("unexpected_keys", "is in its weights, and has no place in the network"),
    ):
        keys = [key if isinstance(key, str) else key[0] for key in told.get(what) or ()]
        keys = sorted(key for key in keys if not key.endswith(COMPUTED))
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise BadInput(f"{keys[0]}{more} {says}", where=str(folder), right=_wanted(kind))
    if told.get("error_msgs"):
        raise BadInput(str(told["error_msgs"][0])[:200], where=str(folder), right=_wanted(kind))


def _same_shapes(kind: Kind, name: str, folder: Path, plain: nn.Module, network: nn.Module) -> None:
    """Raise `BadInput` where *network* is not of the size of *plain*: slots and times are those of *kind*."""
    ours = {key: tuple(value.shape) for key, value in plain.named_parameters()}
    theirs = {key: tuple(value.shape) for key, value in network.named_parameters()}
    for key, shape in theirs.items():
        if key not in ours:
            raise BadInput(
                f"it has {key}, which the {name} of {kind.name} has not", where=str(folder), right=_wanted(kind)
            )
        if ours[key] != shape:
            what = f"{key} is {'x'.join(map(str, shape))}, and {'x'.join(map(str, ours[key]))} in {kind.name}"
            raise BadInput(what, where=str(folder), right=_wanted(kind))
    lacks = next((key for key in ours if key not in theirs), None)
    if lacks is not None:
        raise BadInput(
            f"it has no {lacks}, which the {name} of {kind.name} has", where=str(folder), right=_wanted(kind)
        )


#: What a scheduler's configuration calls what the network predicts.
_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "flow_prediction": "flow",
}


def as_trained(kind: Kind, weights: Path) -> Kind:
    """*kind* as the checkpoint *weights* was trained: with networks that predict noise, or v, as its scheduler says.

    Raises `BadInput` if it was trained in another way than samplers here go back. A checkpoint that says nothing is
    taken for one of *kind*. Where the networks of several loops have checkpoints of their own, all must predict the
    same.
    """
    found = _as_trained(kind, weights)
    places = [weights / kind.folders.get(name, name) for name in kind.loops]
    for place in places:
        path = place.parent / "scheduler" / "scheduler_config.json"
        if place.parent != weights and _as_trained(kind, place.parent).sampling != found.sampling:
            what = f"its network predicts other things than that of {places[0]}"
            raise BadInput(what, where=str(path), right=f"prediction_type: {_SAID[found.sampling.prediction]}")
    return found


def _as_trained(kind: Kind, weights: Path) -> Kind:
    path = weights / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return kind
    config, sampling = _read(path), kind.sampling
    flow = sampling.prediction == "flow"
    said = config.get("prediction_type", "flow_prediction" if _is_flow(config) else "epsilon")
    predicts = _PREDICTIONS.get(said)
    if predicts is None or (predicts == "flow") != flow:
        fit = "flow_prediction" if flow else "epsilon or v_prediction"
        what = f"prediction_type: {said}: {kind.name} is sampled as one that predicts {_OTHERS[flow]}"
        raise BadInput(what, where=str(path), right=f"prediction_type: {fit}")
    for key, value in (_of_flow if flow else _of_betas)(sampling).items():
        if config.get(key, value) != value:
            what = f"{key}: {config[key]}, but {kind.name} is sampled with {value}"
            raise BadInput(what, where=str(path), right=f"{key}: {value}")
    return replace(kind, sampling=replace(sampling, prediction=predicts))


_SAID = {prediction: said for said, prediction in _PREDICTIONS.items()}
_OTHERS = {True: "the velocity of a flow", False: "noise or v"}


def _is_flow(config: Mapping[str, Any]) -> bool:
    return str(config.get("_class_name", "")).startswith("FlowMatch")


def _of_betas(sampling: Sampling) -> dict[str, Any]:
    low, high, spacing = sampling.betas
    return {
        "beta_start": low,
        "beta_end": high,
        "beta_schedule": spacing,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "thresholding": False,
    }


def _of_flow(sampling: Sampling) -> dict[str, Any]:
    if sampling.dynamic is None:
        return {"shift": sampling.shift, "use_dynamic_shifting": False, "num_train_timesteps": 1000}
    low, high, fewest, most = sampling.dynamic
    return {
        "use_dynamic_shifting": True,
        "base_shift": low,
        "max_shift": high,
        "base_image_seq_len": fewest,
        "max_image_seq_len": most,
        "num_train_timesteps": 1000,
    }
