"""How a model is put on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from servetwin.core import BadInput

from .kind import Kind

Precision = Literal["float32", "float16", "bfloat16"]
#: Whose kernels a GPU prefers while a loop and another stage are at work: see `Options`.
First = Literal["none", "loop", "rest"]
#: What of a loop's network goes through ``torch.compile``.
Compile = Literal["none", "blocks", "whole"]
#: Whose kernels compute attention on a GPU.
Attention = Literal["any", "flash", "cudnn", "efficient"]


@dataclass(frozen=True)
class Options:
    """How a model is put on a device.

    *devices* maps the device names of workers to torch devices ("cuda:0", "cpu"); *device* is for those not named
    there. *eager* runs without CUDA graphs, as the CPU always does. *compile* passes the loop's network, or each of
    its repeated blocks, through ``torch.compile`` (in *mode*, without CUDA graphs of its own); batches of
    *compiled_sizes* requests get programs of their own, all others share one. *channels_last* lays a convolutional
    network out that way, *fused_projections* makes one product of queries, keys and values, *attention* says whose
    kernels compute it ("any": those that torch prefers). None: what measured best (docs/guides/real-execution.md).
    *first* says whose kernels a GPU prefers when a loop and another stage are both at work: the loop's, those of the
    rest, or none's. *weights* is a local folder with a checkpoint in diffusers' layout, otherwise weights are random,
    from *seed*. *scheduler* is the sampler, *precision* that of the networks; None: the model's own. *slots* bounds
    the requests that can have begun and not ended. With *processes* each worker is a process of its own
    (`servetwin.real.diffusion.process_lane`). With *reuse* the last prediction of each request is kept, so that a
    step can take it again. *pinned_core* says whether the thread that polls a GPU looks for an undisturbed core and
    stays there (`servetwin.real.cpu_affinity`); None: where there are enough.
    """

    device: str = "cuda:0"
    devices: Mapping[str, str] = field(default_factory=dict)
    eager: bool = False
    compile: Compile | None = None
    mode: str | None = None
    compiled_sizes: tuple[int, ...] | None = None
    channels_last: bool | None = None
    fused_projections: bool | None = None
    attention: Attention | None = None
    first: First = "none"
    weights: Path | None = None
    scheduler: str | None = None
    precision: Precision | None = None
    slots: int = 256
    seed: int = 0
    processes: bool = False
    reuse: bool = False
    pinned_core: bool | None = None

    def __post_init__(self) -> None:
        said = {"compile": get_args(Compile), "attention": get_args(Attention), "precision": get_args(Precision)}
        for name, words in said.items():
            value = getattr(self, name)
            if value is not None and value not in words:
                raise BadInput(f"unknown word {value!r}", where=f"the option {name}", right=" or ".join(words))
        if self.compiled_sizes is not None:
            sizes = tuple(self.compiled_sizes)
            if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
                what = f"{list(sizes)!r} are no batch sizes"
                raise BadInput(what, where="the option compiled_sizes", right="whole numbers from 1 on")
            object.__setattr__(self, "compiled_sizes", sizes)  # a list from JSON

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options with these names and values. Raises `BadInput` for a name that there is not, or no more."""
        names = [option.name for option in fields(cls)]
        for name in given:
            if name == "quiet":
                raise BadInput("the option 'quiet' has another name now", right="pinned_core")
            if name not in names:
                raise BadInput(f"unknown option {name!r}", right=f"one of {', '.join(names)}")
        return cls(**given)

    def torch_device(self, name: str) -> torch.device:
        """The torch device behind the device *name* of a worker. Raises `BadInput` if it is not there."""
        chosen = self.devices.get(name, self.device)
        try:
            device = torch.device(chosen)
        except RuntimeError:
            raise BadInput(f"unknown device {chosen!r}", right="cpu or cuda:0") from None
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise BadInput(f"device {chosen!r} is asked for, but torch sees no GPU", right="device cpu")
            count = torch.cuda.device_count()
            if (device.index or 0) >= count:
                raise BadInput(f"device {chosen!r} is asked for, but there are {count}", right=f"cuda:{count - 1}")
            return torch.device("cuda", device.index or 0)
        if device.type != "cpu":
            raise BadInput(f"device {chosen!r} is not supported", right="cpu or cuda:0")
        return device

    def dtype(self, device: torch.device, kind: Kind) -> torch.dtype:
        """The precision of *kind* on *device*: what was asked for, or its own on a GPU and single on the CPU."""
        chosen = self.precision or (kind.precision if device.type == "cuda" else "float32")
        found: torch.dtype = getattr(torch, chosen)
        return found
