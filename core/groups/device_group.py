"""What a policy sees of a group of devices: how many batches may compute on at once, and what that takes.

The *degree* of a batch is the number of devices that compute each of its steps together (sequence parallelism).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..policy import WorkerView
    from ..request import Shape, Task

#: Seconds of a module for a batch of that size on so many devices, of requests of that shape.
ByDegree = Callable[[str, int, int, "Shape | None"], float]


def _nowhere(task: Task) -> tuple[int, ...]:
    return ()


class DeviceGroup:
    """Devices 0 to *size* - 1. A batch runs on any of them that are free, if their number is one of *degrees*.

    *change* is what a step takes longer, in seconds, before which one of its requests changes devices; None if that
    is not known, and none may. *devices_of* gives those on which a task ran last, or runs (none before its first
    batch). Policies can only read it.
    """

    __slots__ = ("_busy", "_estimate", "_free", "change", "degrees", "devices_of", "size")

    size: int
    degrees: tuple[int, ...]
    change: float | None
    devices_of: Callable[[Task], tuple[int, ...]]
    _free: Callable[[], tuple[int, ...]]
    _busy: Callable[[Task], bool]
    _estimate: ByDegree

    def __init__(
        self,
        degrees: tuple[int, ...],
        estimate: ByDegree,
        free: Callable[[], tuple[int, ...]],
        *,
        size: int,
        busy: Callable[[Task], bool],
        devices_of: Callable[[Task], tuple[int, ...]] = _nowhere,
        change: float | None = None,
    ) -> None:
        said = {"_estimate": estimate, "_free": free, "_busy": busy, "devices_of": devices_of}
        for name, value in (said | {"change": change, "degrees": degrees, "size": size}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_one(cls, view: WorkerView) -> DeviceGroup:
        """That of a worker with a single device, which *view* shows."""

        def free() -> tuple[int, ...]:
            return (0,) if view.in_flight is None else ()

        def busy(task: Task) -> bool:
            return view.in_flight is not None and task in view.in_flight.tasks

        def estimate(module: str, batch: int, degree: int, shape: Shape | None) -> float:
            return view.estimate(module, batch, shape)

        return cls((1,), estimate, free, size=1, busy=busy)

    @property
    def free(self) -> tuple[int, ...]:
        """The numbers of the devices on which nothing runs, in ascending order."""
        return self._free()

    def busy(self, task: Task) -> bool:
        """Whether *task* is in a batch now."""
        return self._busy(task)

    def estimate(self, module: str, batch: int, degree: int, shape: Shape | None = None) -> float:
        """Seconds that *module* takes on *degree* devices for a batch of that size (one iteration of a loop), by the
        scheduler's profile; of requests of that *shape*, where requests have shapes."""
        return self._estimate(module, batch, degree, shape)

    def shown(self, seal: Callable[..., Any]) -> DeviceGroup:
        """A copy whose functions were *seal*-ed."""
        kept = 1 << 14
        return DeviceGroup(
            self.degrees,
            seal(self._estimate, kept),
            seal(self._free),
            size=self.size,
            busy=seal(self._busy),
            devices_of=seal(self.devices_of),
            change=self.change,
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"view.group.{name} is not the policy's to set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"view.group.{name} is not the policy's to delete")
