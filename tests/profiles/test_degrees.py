"""Times where several devices compute each step together; how the profile of FLUX was made of published numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from servetwin.core import BadInput, Shape
from servetwin.profiles import Profile, load
from servetwin.profiles.profile import DATA
from servetwin.profiles.schema import ProfileFile
from servetwin.profiles.tables.loading import check

FLUX = "h100/flux1-dev-by-degree"
#: xDiT/docs/performance/flux.md at 0124baf9: seconds of FLUX.1-dev at 1024x1024 in 28 steps, torch.compile, Ulysses.
XDIT = {1: 4.30, 2: 2.68, 4: 1.63}
#: TetriServe (arXiv 2510.01565), Table 1: TFLOPs by size.
TFLOPS = {256: 556.48, 512: 1388.24, 1024: 5045.92, 2048: 24964.72}


@pytest.fixture(scope="module")
def flux() -> Profile:
    return load(FLUX)


@pytest.mark.parametrize("size", TFLOPS)
@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_flux_is_made_of_what_was_published(flux: Profile, size: int, degree: int) -> None:
    one = XDIT[1] / 28
    over = sum(XDIT[d] / 28 - one / d for d in (2, 4)) / 2  # what xDiT's two points leave over a perfect split
    wanted = one * TFLOPS[size] / TFLOPS[1024] / degree + (over if degree > 1 else 0.0)
    if size == 1024 and degree in XDIT:
        wanted = XDIT[degree] / 28
    step = flux.on(degree).at(Shape(size, size)).table("transformer")(1)
    assert step == pytest.approx(wanted, abs=1e-5)


def test_flux_chooses_for_small_images_what_tetriserve_found_best(flux: Profile) -> None:
    """RSSP (section 6.1): one device for 256x256, eight for 2048x2048."""
    small, large = ([flux.on(d).at(Shape(n, n)).table("transformer")(1) for d in flux.degrees] for n in (256, 2048))
    assert min(small) == small[0]
    assert min(large) == large[-1]


def test_what_a_degree_does_not_name_is_as_on_one_device() -> None:
    profile = Profile(check(said(), ProfileFile, where="here"))
    assert profile.degrees == (1, 2)
    two = profile.on(2)
    assert two.table("dit")(1) == 0.06
    assert two.table("vae")(1) == profile.table("vae")(1) == 0.02
    assert two.at(Shape(64, 64)).table("dit")(1) == 0.04
    assert two.at(Shape(64, 64)).table("vae")(1) == 0.01
    assert profile.on(1) is profile
    with pytest.raises(BadInput, match=r"nobody measured a step on 4 devices at once .*2"):
        profile.on(4)


def test_profiles_without_degrees_are_what_they_were(flux: Profile) -> None:
    assert load("rtx4090/dit-s2-256").degrees == (1,)
    assert flux.digest != flux.on(2).digest


def module(seconds: float, loop: bool = False) -> dict[str, Any]:
    table = {"batch": [1, 2], "seconds": [seconds, 2 * seconds], "statistic": "none", "source": {"file": "none"}}
    return {"loop": loop, "tables": {"scheduler": table}}


def said() -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load((DATA / "synthetic/sdxl-shapes.yaml").read_text())
    content = {name: value for name, value in head.items() if name not in ("modules", "shapes")}
    content["modules"] = {"dit": module(0.1, loop=True), "vae": module(0.02)}
    small = {"size": [64, 64], "modules": {"dit": module(0.05, loop=True), "vae": module(0.01)}}
    content["shapes"] = {"measured": [small]}
    other = {"size": [64, 64], "modules": {"dit": module(0.04, loop=True)}}
    content["degrees"] = [{"devices": 2, "modules": {"dit": module(0.06, loop=True)}, "measured": [other]}]
    return copy.deepcopy(content)


def cost(unit: str = "seconds") -> dict[str, Any]:
    return {"meaning": "none", "unit": unit, "value": 0.01, "how": "none", "source": {"file": "none"}}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda c: c["degrees"].append(c["degrees"][0]), "degrees.1.devices: 2 devices stand twice"),
        (lambda c: c["degrees"][0].update(devices=1), r"degrees\[0\].devices: is 1"),
        (lambda c: c["degrees"][0].update(measured=[]), "these are not the shapes that were measured on one device"),
        (lambda c: c["degrees"][0]["modules"].update(unet=module(1.0)), "unknown module 'unet'"),
        (lambda c: c["degrees"][0]["modules"]["dit"].update(loop=False), "loop is not as in the profile"),
        (lambda c: c.update(costs={"dit.join": cost()}), "this cost is that of one device,.* dit.regroup alone"),
        (lambda c: c["degrees"][0]["measured"][0]["modules"].update(vae=module(0.1)), "it has modules dit, vae"),
    ],
    ids=["twice", "one", "shapes", "module", "loop", "cost", "more"],
)
def test_what_does_not_fit_is_refused(change: Any, wrong: str) -> None:
    content = said()
    change(content)
    with pytest.raises(BadInput, match=wrong):
        check(content, ProfileFile, where="here")


def test_a_change_may_have_a_cost() -> None:
    profile = Profile(check(said() | {"costs": {"dit.regroup": cost()}}, ProfileFile, where="here"))
    assert profile.seconds("dit.regroup") == 0.01
