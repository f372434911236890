"""What a CUDA graph can hold, checked without a GPU: half precision throughout, and no module asks for a value.

The modules are given fake tensors, which have shapes and types but no values: whatever would ask for one (and wait
for the device, which a capture does not allow) raises.
"""

import pytest
import torch
from servetwin.real.diffusion.models import KINDS
from servetwin.real.diffusion.networks import Model
from servetwin.real.diffusion.options import Options
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode


class HalfPrecision(Options):
    """As on a GPU."""

    def dtype(self, device):
        return torch.float16


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-dit", "tiny-palette"])
def test_no_module_asks_for_a_value(name):
    kind = KINDS[name]
    model = Model(kind, HalfPrecision(slots=8, channels_last=kind.family != "dit"), torch.device("cpu"))
    assert set(kind.modules) <= set(model.bodies)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        rows = torch.zeros(3, 6)
        for body in model.bodies.values():
            body(rows)
        with pytest.raises(DataDependentOutputException):  # the check itself works
            float(rows[0, 0])
