"""The networks of a model on a device, and what runs each of its modules on the slot tensors.

A module is a function of *rows*, whose first column are the slots that it works on; it reads and writes the tensors
of `Model.state` in place, so that it can be captured in a CUDA graph once per batch size. What a module does with
them is said in the model's file (`diffusion_model`, `models`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from . import checkpoint
from .diffusion_model import DiffusionModel
from .execution import apply, execution_of
from .kind import Kind
from .model_registry import class_of
from .noise_schedule import TWO_STEPS
from .options import Options

Body = Callable[[Tensor], None]

#: Distinct prompts, labels and images that requests bring, by request id modulo this.
VARIETY = 16
#: Module name of what turns the result of a model without a VAE into an image.
OUTPUT = "output"


class Model:
    """The networks of *kind* on *device*, and a slot for each of up to ``options.slots`` requests."""

    def __init__(self, kind: Kind, options: Options, device: torch.device) -> None:
        self.kind = kind
        self.device = device
        self.dtype = options.dtype(device, kind)
        gpu = device.type == "cuda"
        self.execution = execution_of(options, kind, device)
        self.definition = definition = class_of(kind)(kind, device, self.dtype)
        self.networks: dict[str, nn.Module] = definition.networks
        with torch.random.fork_rng(devices=[device] if gpu else []):
            torch.manual_seed(options.seed)
            for name in kind.networks:
                network = build(definition, name, options, device)
                dtype = definition.dtype_of(name, network)
                _cast(network.requires_grad_(False).eval(), device, dtype)
                self.networks[name] = network
        self.image_shape = kind.image_shape
        self.state: dict[str, Tensor] = {
            "latents": torch.zeros(options.slots, *kind.latent, device=device),
            "image": torch.zeros(options.slots, *self.image_shape, dtype=torch.uint8, device=device),
        }
        if kind.sampling.chosen(options.scheduler) in TWO_STEPS:
            self.state["past"] = torch.zeros_like(self.state["latents"])
        # What runs the loop's network; the CUDA graphs are captured of it.
        definition.network = apply(self.networks[kind.loop], self.execution, kind.rows)
        with torch.no_grad():
            definition.prepare()
        for name, (shape, dtype) in definition.slots(kind.latent).items():
            self.state[name] = torch.zeros(options.slots, *shape, dtype=dtype, device=device)
        self.bodies: dict[str, Body] = {module: self._body(module) for module in kind.modules}
        if definition.body(OUTPUT) is not None:
            self.bodies[OUTPUT] = self._body(OUTPUT)
        self.inputs = self._draw_inputs(options)

    def keep(self, modules: set[str]) -> None:
        """Let go of the networks of all but these *modules*."""
        for name in set(self.networks) - modules:
            del self.networks[name]
        if self.kind.loop not in modules:
            del self.definition.network

    # -- what a request brings --------------------------------------------------------------------------

    def _draw_inputs(self, options: Options) -> list[dict[str, Tensor]]:
        """Prompts, labels or images as a client would send them; in pinned memory where there is a GPU."""
        generator = torch.Generator().manual_seed(options.seed)
        drawn = []
        for _ in range(VARIETY):
            values = self.definition.brings(generator, self.kind.latent)
            drawn.append({k: v.pin_memory() if self.device.type == "cuda" else v for k, v in values.items()})
        return drawn

    def bring(self, slot: int, request: int) -> None:
        """Put what *request* sent into its *slot*."""
        for name, value in self.inputs[request % VARIETY].items():
            self.state[name][slot].copy_(value, non_blocking=True)

    def noise(self, slot: int, seed: int, first: float, generator: torch.Generator) -> None:
        """Set the latents of *slot* up: Gaussian noise from *seed*, times *first*."""
        generator.manual_seed(seed)
        latents = self.state["latents"][slot]
        latents.normal_(generator=generator)
        if first != 1.0:
            latents.mul_(first)
        if "past" in self.state:
            self.state["past"][slot].zero_()

    # -- what a module does -------------------------------------------------------------------------------

    def _body(self, module: str) -> Body:
        definition, state = self.definition, self.state  # in which a process may put the tensors of another
        if module != self.kind.loop:
            run = definition.body(module)
            assert run is not None
            return lambda rows: run(state, rows[:, 0].long())
        layout = torch.channels_last if self.execution.channels_last else torch.contiguous_format

        def step(rows: Tensor) -> None:
            """One denoising step. Rows are (slot, timestep, scale, keep, add, guidance, back, own, theirs)."""
            latents = state["latents"]
            index = rows[:, 0].long()
            x = latents.index_select(0, index)
            scale = rows[:, 2].view(-1, *(1,) * (x.dim() - 1))
            seen = (x * scale).to(self.dtype).contiguous(memory_format=layout)
            out = definition.predict(state, index, seen, rows[:, 1], rows[:, 5])
            latents.index_copy_(0, index, definition.update(state, index, x, out.float(), rows).contiguous())

        return step


def build(definition: DiffusionModel, name: str, options: Options, device: torch.device) -> nn.Module:
    """A network, from its checkpoint if there is one and else from its configuration with random weights."""
    import diffusers  # which sets up its log when it is first imported

    diffusers.logging.set_verbosity_error()
    kind, config = definition.kind, dict(definition.kind.networks[name])
    if options.weights is not None:
        with torch.device("meta"):
            shape = definition.build(name, config)
        return checkpoint.load(kind, name, options.weights, type(shape), shape, definition.dtype)
    # On a GPU random weights are drawn there, which takes seconds less; those of large models in their own precision,
    # or they would need twice the memory for a moment.
    large = definition.dtype if definition.dtype == torch.bfloat16 and device.type == "cuda" else None
    with device, _drawn_in(large):
        return definition.build(name, config)


def _cast(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring *network* to *device*, in *dtype* but for what its library serves in single precision."""
    single: set[str] = set()
    if dtype != torch.float32:
        single |= {*(getattr(network, "_keep_in_fp32_modules_strict", None) or ())}
        # transformers means half precision alone, diffusers whatever is less than single.
        if dtype == torch.float16 or type(network).__module__.startswith("diffusers."):
            single |= {*(getattr(network, "_keep_in_fp32_modules", None) or ())}
    kept = {
        parameter: parameter.data.to(device=device, dtype=torch.float32, copy=True)
        for name, parameter in network.named_parameters()
        if single.intersection(name.split("."))
    }
    network.to(device=device, dtype=dtype)
    for parameter, data in kept.items():
        parameter.data = data


@contextlib.contextmanager
def _drawn_in(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
