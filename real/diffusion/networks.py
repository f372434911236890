"""The networks of a model on a device, and what runs each of its modules on the slot tensors.

A module is a function of *rows*, whose first column are the slots that it works on; it reads and writes the tensors
of a `Room` in place, so that it can be captured in a CUDA graph once per shape and batch size. What a module does
with them is said in the model's file (`diffusion_model`, `models`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from servetwin.core import Shape
from torch import Tensor, nn

from . import checkpoint, slot_tensors
from .diffusion_model import DiffusionModel, Slot
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
#: Module name of a step of the loop that takes the network's last prediction again (`Options.reuse`).
REUSE = "reuse"


@dataclass
class Room:
    """What there is for requests of one shape: *kind* is the model at their size, *state* the tensors of their slots,
    *bodies* what runs each module on these, *inputs* what requests bring."""

    kind: Kind
    state: dict[str, Tensor]
    bodies: dict[str, Body]
    inputs: list[dict[str, Tensor]]

    @property
    def tokens(self) -> int:
        """Of an image, by which a dynamic shift goes; 0 if there is none."""
        return self.kind.tokens(self.kind.latent) if self.kind.sampling.dynamic is not None else 0


class Model:
    """The networks of *kind* on *device*, and a slot for each of up to ``options.slots`` requests, of whichever of
    *shapes* (None: the model's own) a request is."""

    def __init__(
        self, kind: Kind, options: Options, device: torch.device, shapes: Iterable[Shape | None] = (None,)
    ) -> None:
        self.kind = kind
        self.options = options
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
        # What runs the loops' networks; the CUDA graphs are captured of it.
        for name in kind.loops:
            definition.looped[name] = apply(self.networks[name], self.execution, kind.rows)
        definition.network = definition.looped[kind.loop]
        with torch.no_grad():
            definition.prepare()
        self.lay_out(shapes)

    # -- slots ------------------------------------------------------------------------------------------

    def lay_out(self, shapes: Iterable[Shape | None]) -> None:
        """Make room for requests of these *shapes*, and of no others any more; what was in the slots is lost.

        Raises `BadInput` for a shape that this model cannot serve, and if the slots do not fit into the memory.
        """
        kinds = {shape: self.kind if shape is None else self.kind.at(shape) for shape in shapes}
        parts = {shape: self._layout(kind) for shape, kind in kinds.items()}
        self.rooms: dict[Shape | None, Room] = {}
        self.whole: dict[str, Tensor] = {}  # the old ones are gone before there are new ones
        self.slot_bytes = {shape: slot_tensors.size(part) for shape, part in parts.items()}
        if self.device.type == "cuda" or None not in kinds:
            slot_tensors.check_memory(parts, self.options.slots, self.device)
        self.whole = slot_tensors.allocate(parts.values(), self.options.slots, self.device)
        for shape, kind in kinds.items():
            state = slot_tensors.views(self.whole, parts[shape])
            room = self.rooms[shape] = Room(kind, state, {}, self._draw_inputs(kind))
            bodies = {module: self._body(module, room) for module in kind.modules}
            if self.definition.body(OUTPUT) is not None:
                bodies[OUTPUT] = self._body(OUTPUT, room)
            if self.options.reuse:
                bodies[REUSE] = self._body(REUSE, room)
            room.bodies.update(bodies)

    def _layout(self, kind: Kind) -> dict[str, Slot]:
        """The tensors of a request of *kind*, by name."""
        parts: dict[str, Slot] = {"latents": (kind.latent, torch.float32), "image": (kind.image_shape, torch.uint8)}
        if kind.sampling.chosen(self.options.scheduler) in TWO_STEPS:
            parts["past"] = parts["latents"]
        if self.options.reuse:
            parts["predicted"] = parts["latents"]
        return parts | dict(self.definition.slots(kind.latent))

    def adopt(self, whole: Mapping[str, Tensor]) -> None:
        """Work on the slots of another process, which has laid out the same shapes."""
        self.whole = dict(whole)
        for room in self.rooms.values():
            room.state.update(slot_tensors.views(self.whole, self._layout(room.kind)))

    @property
    def first(self) -> Room:
        """That of the first shape; of the model's own, if there is no other."""
        return next(iter(self.rooms.values()))

    @property
    def state(self) -> dict[str, Tensor]:
        return self.first.state

    @property
    def bodies(self) -> dict[str, Body]:
        return self.first.bodies

    @property
    def inputs(self) -> list[dict[str, Tensor]]:
        return self.first.inputs

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.first.kind.image_shape

    def keep(self, modules: set[str]) -> None:
        """Let go of the networks of all but these *modules*."""
        for name in set(self.networks) - modules:
            del self.networks[name]
            self.definition.looped.pop(name, None)
        if self.kind.loop not in modules:
            del self.definition.network

    # -- what a request brings --------------------------------------------------------------------------

    def _draw_inputs(self, kind: Kind) -> list[dict[str, Tensor]]:
        """Prompts, labels or images as a client would send them; in pinned memory where there is a GPU."""
        generator = torch.Generator().manual_seed(self.options.seed)
        drawn = []
        for _ in range(VARIETY):
            values = self.definition.brings(generator, kind.latent)
            drawn.append({k: v.pin_memory() if self.device.type == "cuda" else v for k, v in values.items()})
        return drawn

    def bring(self, slot: int, request: int, shape: Shape | None = None) -> None:
        """Put what *request*, of that *shape*, sent into its *slot*."""
        room = self.rooms[shape]
        for name, value in room.inputs[request % VARIETY].items():
            room.state[name][slot].copy_(value, non_blocking=True)

    def noise(
        self, slot: int, seed: int, first: float, generator: torch.Generator, shape: Shape | None = None
    ) -> None:
        """Set the latents of *slot* up, for a request of that *shape*: Gaussian noise from *seed*, times *first*."""
        state = self.rooms[shape].state
        generator.manual_seed(seed)
        latents = state["latents"][slot]
        latents.normal_(generator=generator)
        if first != 1.0:
            latents.mul_(first)
        if "past" in state:
            state["past"][slot].zero_()

    # -- what a module does -------------------------------------------------------------------------------

    def _body(self, module: str, room: Room) -> Body:
        definition, state = self.definition, room.state  # in which a process may put the tensors of another
        led = room.kind.rows == self.kind.rows
        if module == REUSE:
            return lambda rows: self._reuse(state, rows)
        if module not in self.kind.loops:
            run = definition.body(module)
            assert run is not None
            return lambda rows: run(state, rows[:, 0].long())
        predict = definition.predictor(module)
        layout = torch.channels_last if self.execution.channels_last else torch.contiguous_format

        def step(rows: Tensor) -> None:
            """One denoising step. Rows are (slot, timestep, scale, keep, add, guidance, back, own, theirs)."""
            latents = state["latents"]
            index = rows[:, 0].long()
            x = latents.index_select(0, index)
            scale = rows[:, 2].view(-1, *(1,) * (x.dim() - 1))
            seen = (x * scale).to(self.dtype).contiguous(memory_format=layout)
            out = predict(state, index, seen, rows[:, 1], rows[:, 5] if led else None).float()
            if "predicted" in state:
                state["predicted"].index_copy_(0, index, out.contiguous())
            latents.index_copy_(0, index, definition.update(state, index, x, out, rows).contiguous())

        return step

    def _reuse(self, state: dict[str, Tensor], rows: Tensor) -> None:
        """A denoising step as any other, but with the prediction of the last one for which the network ran."""
        latents, index = state["latents"], rows[:, 0].long()
        x, out = latents.index_select(0, index), state["predicted"].index_select(0, index)
        latents.index_copy_(0, index, self.definition.update(state, index, x, out, rows).contiguous())


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
