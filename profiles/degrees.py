"""Times where several devices compute each step together (sequence parallelism).

A degree that was measured takes what was measured; between degrees nothing is interpolated, since whether another
device pays off depends on what passes between them. Modules that a degree does not name take what they take on one
device.
"""

from __future__ import annotations

from servetwin.core import BadInput

from .schema import ProfileFile


def of_degree(data: ProfileFile, devices: int) -> ProfileFile:
    """*data* where so many *devices* compute each step. Raises `BadInput` if that was not measured."""
    degree = next((degree for degree in data.degrees if degree.devices == devices), None)
    if degree is None:
        known = ", ".join(str(degree.devices) for degree in data.degrees)
        what = f"nobody measured a step on {devices} devices at once"
        raise BadInput(what, where=f"{data.name}: degrees", right=known or "a profile with degrees")
    shapes = data.shapes
    if shapes is not None:
        own = {(shape.size, shape.frames, shape.guidance): shape.modules for shape in degree.measured}
        measured = tuple(
            shape.model_copy(update={"modules": shape.modules | own[shape.size, shape.frames, shape.guidance]})
            for shape in shapes.measured
        )
        shapes = shapes.model_copy(update={"measured": measured})
    update = {"name": f"{data.name} on {devices} devices", "modules": data.modules | degree.modules}
    return data.model_copy(update={**update, "shapes": shapes, "degrees": ()})
