"""How the network of a loop is executed: as it is or compiled, and how its weights and attention are laid out.

`Execution` says it in plain words, as run records and profiles keep it; `apply` makes a network do so. CUDA graphs
are captured of whatever comes out (`graph_runner`): compiling saves kernels and their time, not launches.

Compiling the repeated *blocks* of a network instead of the *whole* of it makes one program for blocks of the same
shape, in a fraction of the time, and loses only what could be fused across their borders. torch keeps compiled
programs on disk (`keep_programs`) and finds them there at the next start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from servetwin.core import BadInput
from torch import Tensor, nn

from .kind import Kind
from .model_registry import class_of
from .options import Attention, Compile, Options

#: The blocks that are compiled one by one: classes of diffusers. What is inside of another one is compiled with it.
BLOCKS = (
    *("Transformer2DModel", "ResnetBlock2D", "BasicTransformerBlock", "Attention"),
    *("FluxTransformerBlock", "FluxSingleTransformerBlock", "JointTransformerBlock", "WanTransformerBlock"),
)
#: Programs that torch may make of the code of one class: for each width of a U-Net's blocks, twice.
PROGRAMS = 256
#: Batches with a program of their own, unless `Options.compiled_sizes` says otherwise: alone, a request leaves most
#: of a GPU idle, and reductions want another division of work than in a batch.
OWN = (1,)


@dataclass(frozen=True)
class Execution:
    """How a loop's network is executed on a device.

    *graphs*: each batch size is one CUDA graph. *compile* says what goes through ``torch.compile``, in *mode* (None:
    its default); batches of *compiled_sizes* requests have programs of their own, all others share one. *attention*
    is whose kernels compute it ("any": those that torch prefers). With *fused_projections* queries, keys and values
    come of one matrix product.
    """

    graphs: bool
    compile: Compile = "none"
    mode: str | None = None
    compiled_sizes: tuple[int, ...] = ()
    channels_last: bool = False
    fused_projections: bool = False
    attention: Attention = "any"

    def as_dict(self) -> dict[str, Any]:
        """What it says, without what it leaves as torch and diffusers have it."""
        found: dict[str, Any] = {"graphs": self.graphs, "compile": self.compile}
        if self.compile != "none":
            found["compiled_sizes"] = list(self.compiled_sizes)
        more = {
            "mode": self.mode,
            "channels_last": self.channels_last,
            "fused_projections": self.fused_projections,
            "attention": self.attention if self.attention != "any" else None,
        }
        return found | {name: value for name, value in more.items() if value}

    def __str__(self) -> str:
        return in_words(self.as_dict())


def in_words(said: Mapping[str, Any]) -> str:
    """What `Execution.as_dict` gave, in one line.

    >>> in_words({"graphs": True, "compile": "blocks", "compiled_sizes": [1], "channels_last": True})
    'CUDA graphs, compiled blocks (batch 1 apart), channels last'
    """
    parts = ["CUDA graphs" if said.get("graphs") else "no CUDA graphs"]
    compiled = said.get("compile", "none")
    if compiled == "none":
        parts.append("not compiled")
    else:
        sizes = ", ".join(str(n) for n in said.get("compiled_sizes") or ())
        mode = f" in {said['mode']}" if said.get("mode") else ""
        apart = f" (batch {sizes} apart)" if sizes else ""
        parts.append(f"compiled {'blocks' if compiled == 'blocks' else 'as a whole'}{mode}{apart}")
    parts += [name.replace("_", " ") for name in ("channels_last", "fused_projections") if said.get(name)]
    return ", ".join(parts + ([f"{said['attention']} attention"] if said.get("attention") else []))


def options_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """The `Options` that come to what `Execution.as_dict` *said*, its CUDA graphs aside.

    >>> options_of({"graphs": True, "compile": "none"})
    {'compile': 'none', 'channels_last': False, 'fused_projections': False, 'attention': 'any'}
    """
    found: dict[str, Any] = {"compile": said["compile"]}
    if said["compile"] != "none":
        found |= {"mode": said.get("mode"), "compiled_sizes": tuple(said["compiled_sizes"])}
    found |= {name: said.get(name, False) for name in ("channels_last", "fused_projections")}
    return found | {"attention": said.get("attention", "any")}


def execution_of(options: Options, kind: Kind, device: torch.device) -> Execution:
    """What *options* come to for the loop of *kind* on *device*.

    Raises `BadInput` for what does not go together.
    """
    gpu = device.type == "cuda"
    compiled = options.compile or "none"
    for name in ("mode", "compiled_sizes"):
        if compiled == "none" and getattr(options, name) is not None:
            raise BadInput("nothing is compiled", where=f"the option {name}", right="compile: blocks or whole")
    if options.attention not in (None, "any") and not gpu:
        what = f"{options.attention} attention is one of GPUs"
        raise BadInput(what, where="the option attention", right=f"none of it on {device}")
    # Plain convolutions were quicker as they are, compiled ones with channels last
    # (docs/reports/2026-11-h100-diffusion.md).
    usual = gpu and compiled != "none"
    last = class_of(kind).convolutional and (usual if options.channels_last is None else options.channels_last)
    sizes = OWN if options.compiled_sizes is None else tuple(sorted(options.compiled_sizes))
    return Execution(
        graphs=gpu and not options.eager,
        compile=compiled,
        mode=options.mode,
        compiled_sizes=sizes if compiled != "none" else (),
        channels_last=bool(last),
        fused_projections=bool(options.fused_projections),
        attention=options.attention or "any",
    )


def apply(network: nn.Module, execution: Execution, rows: int) -> Callable[..., Any]:
    """Let *network*, which is on its device, do as *execution* says; *rows* are those of a request in a batch.

    Gives what is to be called in its place.
    """
    if execution.channels_last:
        network.to(memory_format=torch.channels_last)
    if execution.fused_projections:
        _fuse(network)
    if execution.compile != "none":
        keep_programs()
        own = frozenset(n * rows for n in execution.compiled_sizes)
        for module in [network] if execution.compile == "whole" else _blocks(network):
            module.forward = _programs(module.forward, own, execution.mode)
    return _attended(network, execution.attention)


def keep_programs() -> None:
    """Let torch keep compiled programs in the user's cache folder, unless ``TORCHINDUCTOR_CACHE_DIR`` says where:
    by default they would go with the folder for temporary files."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "servetwin" / "torch"))


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of a class of `BLOCKS`."""
    found: list[nn.Module] = []
    for child in network.children():
        found += [child] if type(child).__name__ in BLOCKS else _blocks(child)
    return found


def _programs(forward: Callable[..., Any], own: frozenset[int], mode: str | None) -> Callable[..., Any]:
    """*forward* through ``torch.compile``: a program for each number of rows in *own*, and one for all others.

    torch makes a program of its own of a batch of one row too.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 4 * PROGRAMS
    )
    # What differs in `dynamic` is compiled apart, and none takes the other's programs.
    fixed = torch.compile(forward, fullgraph=True, dynamic=False, mode=mode)
    shared = torch.compile(forward, fullgraph=True, dynamic=None, mode=mode)

    def call(*args: Any, **options: Any) -> Any:
        tensors = [value for value in (*args, *options.values()) if isinstance(value, Tensor) and value.dim()]
        count = tensors[0].shape[0]
        if count in own:
            return fixed(*args, **options)
        if count > 1:
            for value in tensors:
                if value.shape[0] == count:
                    torch._dynamo.maybe_mark_dynamic(value, 0)
        return shared(*args, **options)

    return call


def _fuse(network: nn.Module) -> None:
    """One matrix product for queries, keys and values of each attention (keys and values, where it looks at a
    prompt)."""
    from diffusers.models.attention_processor import Attention as Layer
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    for layer in network.modules():
        if isinstance(layer, Layer):
            layer.fuse_projections(fuse=True)
            layer.set_processor(FusedAttnProcessor2_0())
    network.requires_grad_(False)


def _attended(network: nn.Module, attention: Attention) -> Callable[..., Any]:
    """*network* with the kernels of *attention* where they can compute it, and else those that torch prefers."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if attention == "any":
        called: Callable[..., Any] = network
        return called
    first = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }[attention]
    rest = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    order = list(dict.fromkeys((first, *rest)))

    def call(*args: Any, **options: Any) -> Any:
        with sdpa_kernel(order, set_priority=True):
            return network(*args, **options)

    return call
