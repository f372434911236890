"""A model of your own is one file with a subclass of `DiffusionModel`: what it is, and what each module does.

    class Mine(DiffusionModel):
        kinds = (Kind("mine", "My model, 64x64", chain=(("label", False), ("unet", True)), ...),)

        def build(self, name, config): ...              # a network of this configuration
        def slots(self, latent): ...                    # the tensors that each request has
        def brings(self, generator, latent): ...        # what a request comes with
        def label(self, slots, index): ...              # each module that does not loop, by its name
        def predict(self, slots, index, x, t, guidance): ...   # the module that loops, once

How the latents change by a prediction is the sampler's (`servetwin.real.diffusion.noise_schedule`); who has another
rule overrides `update`. On a GPU all of these are captured in CUDA graphs, one per module and batch size: they work
on the tensors of *slots* in place, and never look at a value.

torch is imported inside methods in the files that come with ServeTwin, so that models can be listed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .kind import Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: Shape without the first dimension (which is the slot), and type.
Slot = tuple[tuple[int, ...], Any]


class DiffusionModel:
    """Serves each of *kinds*. An object of it belongs to one device.

    ServeTwin sets *networks*, by module, on *device* and of *dtype*, and *network*, the loop's (itself, or what
    ``torch.compile`` makes of it), before it calls `prepare`. Where several modules loop, *looped* has the same of
    each.
    """

    #: The models that this class serves.
    kinds: ClassVar[tuple[Kind, ...]] = ()
    #: Whether the loop's network is made of convolutions, for which channels-last layout may be quicker.
    convolutional: ClassVar[bool] = False

    def __init__(self, kind: Kind, device: torch.device, dtype: torch.dtype) -> None:
        self.kind = kind
        self.device = device
        self.dtype = dtype
        self.networks: dict[str, nn.Module] = {}
        self.network: Callable[..., Any] = _no_network
        self.looped: dict[str, Callable[..., Any]] = {}

    # -- networks -----------------------------------------------------------------------------------------

    def build(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """The network of module *name* from its *config*, with random weights, on the device that is torch's default
        now. Its class must have ``from_pretrained`` if checkpoints are to be loaded."""
        raise NotImplementedError

    def dtype_of(self, name: str, network: nn.Module) -> torch.dtype:
        """The precision in which *network* is served."""
        return self.dtype

    def prepare(self) -> None:
        """Once all networks are there: whatever is computed once."""

    # -- requests -----------------------------------------------------------------------------------------

    def slots(self, latent: tuple[int, ...]) -> Mapping[str, Slot]:
        """The tensors that a request with latents of this shape has, beside "latents" and "image"."""
        return {}

    def brings(self, generator: torch.Generator, latent: tuple[int, ...]) -> Mapping[str, Tensor]:
        """What a request comes with (some of the tensors of `slots`, on the CPU), drawn from *generator*."""
        return {}

    # -- modules ------------------------------------------------------------------------------------------

    def predict(
        self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, t: Tensor, guidance: Tensor | None
    ) -> Tensor:
        """What the loop's network predicts for the latents *x* (batch x latent) at timesteps *t* (batch), with
        guidance scales *guidance* (batch; None: without guidance, which is asked of an *unguided* `Kind` alone). The
        requests are at *index* in the tensors of *slots*; all are of one shape."""
        raise NotImplementedError

    def predictor(self, module: str) -> Callable[..., Tensor]:
        """What *module*, which loops, predicts: a method ``predict_MODULE`` with the arguments of `predict`, or else
        that one."""
        found: Callable[..., Tensor] = getattr(self, f"predict_{module}", self.predict)
        return found

    def update(self, slots: Mapping[str, Tensor], index: Tensor, x: Tensor, out: Tensor, rows: Tensor) -> Tensor:
        """The latents after a step, from those before it (*x*) and the prediction *out*; both in single precision.

        *rows* (batch x columns) are the coefficients of each request's step: see `noise_schedule`.
        """
        wide = (-1, *(1,) * (x.dim() - 1))
        keep, add = (rows[:, i].view(wide) for i in (3, 4))
        after = x * keep + out * add
        past = slots.get("past")
        if past is not None:  # a sampler of two steps
            back, own, theirs = (rows[:, i].view(wide) for i in (6, 7, 8))
            after = after + past.index_select(0, index) * back
            past.index_copy_(0, index, (x * own + out * theirs).contiguous())
        return after

    def body(self, module: str) -> Callable[[Mapping[str, Tensor], Tensor], None] | None:
        """What a module that does not loop does with the requests at an index of the slots; None: there is none."""
        found: Callable[[Mapping[str, Tensor], Tensor], None] | None = getattr(self, module, None)
        return found


def _no_network(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the networks are not there yet")
