"""The shapes of requests to a diffusion model: their sizes, and what else batches go by; and what may be done with
their steps."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field
from servetwin.core import BadInput, Shape

from .keys.field_types import Count, NotNegative, Strict


class ShapeSpec(Strict):
    """A *size* in pixels, height x width (1024x1024); *frames* of a video, *images* of one prompt. *guidance* is the
    number of rows that an image takes inside the network: 2 with classifier-free guidance, 1 without; left out, that
    of the profile. A size alone may stand for it."""

    size: Annotated[str, Field(pattern=r"^[1-9]\d{0,5}x[1-9]\d{0,5}$")]
    frames: Annotated[Count, Field(le=100_000)] = 1
    guidance: Annotated[int, Field(ge=1, le=4)] | None = None
    images: Annotated[Count, Field(le=1000)] = 1

    @property
    def shape(self) -> Shape:
        height, width = map(int, self.size.split("x"))
        return Shape(height, width, self.frames, self.guidance, self.images)


def parsed(text: str, where: str) -> Shape:
    """The shape that *text* says: height x width, x frames if there are more than one, and after a colon the rows
    that an image takes. Raises `BadInput`.

    >>> parsed("480x832x49:1", "--shape")
    Shape(height=480, width=832, frames=49, guidance=1, images=1)
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})(?:x([1-9]\d{0,4}))?(?::([1-4]))?", text)
    if found is None:
        raise BadInput(f"{text!r} is no shape", where=where, right="512x768, 480x832x49, or 512x768:1")
    height, width, frames, guidance = found.groups()
    return Shape(int(height), int(width), int(frames or 1), int(guidance) if guidance else None)


def _from_size(value: Any) -> Any:
    return {"size": value} if isinstance(value, str) else value


Said = Annotated[ShapeSpec, BeforeValidator(_from_size)]


class ConstantShape(ShapeSpec):
    """The same for every request."""

    draw: Literal["constant"]


class ChoiceShape(Strict):
    """One of *values*, with probabilities proportional to *weights* (equal if left out)."""

    draw: Literal["choice"]
    values: Annotated[list[Said], Field(min_length=1)]
    weights: list[NotNegative] | None = None


class TraceShape(Strict):
    """What the trace file says: its sizes, and its columns ``frames``, ``guidance`` and ``images`` if there are any.
    Images of which it says no size are of this *size*."""

    draw: Literal["trace"]
    size: Annotated[str, Field(pattern=r"^[1-9]\d{0,5}x[1-9]\d{0,5}$")] | None = None


ShapeDraw = Annotated[ConstantShape | ChoiceShape | TraceShape, Discriminator("draw")]


def shapes_in(draw: ShapeDraw | None) -> list[Shape]:
    """The shapes that *draw* may give; none of a trace, which is to be read."""
    if isinstance(draw, ConstantShape):
        return [draw.shape]
    if isinstance(draw, ChoiceShape):
        weights = draw.weights or [1.0] * len(draw.values)
        return [said.shape for said, weight in zip(draw.values, weights, strict=True) if weight > 0.0]
    return []


class SimilarSpec(Strict):
    """How alike, from 0 to 1, the most alike earlier prompt is whose states were kept: for each request one of
    *values*, with probabilities proportional to *weights* (equal if left out). *source* says where they come from."""

    values: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    weights: list[NotNegative] | None = None
    source: Annotated[str, Field(min_length=1)]


class ConfidenceSpec(Strict):
    """A policy chooses who takes the branch that leaves this module, by how good the result is thought to be: from 0
    to 1, drawn for each request, all equally likely. *quality* are pairs [confidence, quality]: what a result is
    worth, beside what its steps say, whose request does not take the branch; in straight lines between. *source* says
    where the numbers come from."""

    quality: Annotated[list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]


class StepActionsSpec(Strict):
    """What a policy may do with the steps of a loop, and what a result is worth then.

    *quality* are pairs [share, quality]: what a result is worth if the network ran in that share of the steps that
    were asked for, in straight lines between. The shares rise, the last is 1. A policy may go down to the first, and
    to no fewer than *min_steps* (a request that asks for fewer gets them all). *source* says where the numbers come
    from. With *reuse* a step may take the network's last prediction again, which a profile must know the time of.
    *similar* says how alike kept states are, which a policy may go by (null: nothing is known of that). With
    *confidence* a policy chooses who goes on to a second model.
    """

    quality: Annotated[list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    min_steps: Count = 1
    reuse: bool = False
    similar: SimilarSpec | None = None
    confidence: ConfidenceSpec | None = None
