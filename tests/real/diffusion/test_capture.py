"""What a CUDA graph can hold, checked without a GPU: half precision throughout, and no module asks for a value.

The modules are given fake tensors, which have shapes and types but no values: whatever would ask for one (and wait
for the device, which a capture does not allow) raises.
"""

import pytest
import torch
from servetwin.real.diffusion.graph_runner import WIDTH
from servetwin.real.diffusion.model_registry import KINDS, class_of
from servetwin.real.diffusion.networks import Model
from servetwin.real.diffusion.options import Options
from test_shapes import shapes_of
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode


@pytest.mark.parametrize("sampler", ["one step", "dpm++2m"])
@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("tiny-")])
def test_no_module_asks_for_a_value(name, sampler):
    kind = KINDS[name]
    scheduler = None if sampler == "one step" else sampler
    layout = class_of(kind).convolutional
    options = Options(slots=8, precision=kind.precision, channels_last=layout, scheduler=scheduler)
    model = Model(kind, options, torch.device("cpu"), [None, shapes_of(name)[1]])
    assert set(kind.modules) <= set(model.bodies)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        rows = torch.zeros(3, WIDTH)
        for room in model.rooms.values():
            for body in room.bodies.values():
                body(rows)
        with pytest.raises(DataDependentOutputException):  # the check itself works
            float(rows[0, 0])
