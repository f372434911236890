"""What an experiment file says of workers and devices that fail (docs/guides/faults.md)."""

from typing import Annotated, Literal

from pydantic import Field

from .autoscaler import StartSpec
from .field_types import PositiveWait, Strict, Wait


class FaultSpec(Strict):
    """One thing that goes wrong *at* a time, in seconds since the run began, with a *device* and all its workers, or
    with one *worker*.

    ``fail``: it is down *for* so many seconds, or *until* a time, or for ever, and all that is there is lost.
    ``crash``: the same of a worker's process, which is back after *restart*. ``pause``: it stands still, and then
    goes on. ``slow``: what it computes takes *factor* times as long. ``late``: messages to it take *seconds* longer.
    ``lost``: messages to it are lost.
    """

    at: Wait
    kind: Literal["fail", "crash", "pause", "slow", "late", "lost"]
    device: str | None = None
    worker: str | None = None
    lasts: Annotated[PositiveWait | None, Field(alias="for")] = None
    until: PositiveWait | None = None
    factor: Annotated[float, Field(gt=1, le=1e6)] | None = None
    seconds: PositiveWait | None = None
    restart: StartSpec | None = None


class DrawnFaultsSpec(Strict):
    """Each device fails after an exponentially distributed time with mean *mtbf* seconds, is down for one with mean
    *mttr* seconds, and so on. *devices*: only these, by default all. *source* says where the numbers come from."""

    mtbf: Annotated[float, Field(ge=1e-3, le=1e10)]
    mttr: Annotated[float, Field(ge=1e-3, le=1e7)]
    devices: Annotated[list[str], Field(min_length=1)] | None = None
    source: Annotated[str, Field(min_length=1)]


class RetrySpec(Strict):
    """A request that was lost is sent again up to *attempts* times, *backoff_seconds* after its loss was noticed."""

    attempts: Annotated[int, Field(ge=1, le=1000)]
    backoff_seconds: Wait = 0.0


class OutOfMemorySpec(Strict):
    """A batch of *batch* requests or more does not fit into memory, and fails as it begins. The worker goes on, or is
    back after *restart*. *workers*: only these, by default all that have batches."""

    batch: Annotated[int, Field(ge=1, le=10**6)]
    restart: StartSpec | None = None
    workers: Annotated[list[str], Field(min_length=1)] | None = None


class FaultsSpec(Strict):
    """What goes wrong: a *script*, failures that are *drawn*, and batches that run *out_of_memory*.

    A failure is noticed *detect_seconds* after it happened: until then routers go on sending. With *retry* lost
    requests are sent again, else they fail.
    """

    detect_seconds: Wait
    retry: RetrySpec | None = None
    script: list[FaultSpec] = Field(default_factory=list)
    drawn: DrawnFaultsSpec | None = None
    out_of_memory: OutOfMemorySpec | None = None
