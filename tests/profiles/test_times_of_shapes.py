"""Times of shapes that were not measured, from those that were."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from servetwin.core import BadInput, Shape
from servetwin.profiles import Profile, load
from servetwin.profiles.schema import ProfileFile
from servetwin.profiles.tables.loading import check

SHAPES = "synthetic/sdxl-shapes"


@pytest.fixture(scope="module")
def sdxl() -> Profile:
    return load(SHAPES)


def said() -> dict[str, Any]:
    from servetwin.profiles.profile import DATA

    content: dict[str, Any] = yaml.safe_load((DATA / f"{SHAPES}.yaml").read_text())
    return content


def test_the_profiles_own_shape_is_the_profile(sdxl: Profile) -> None:
    assert sdxl.at(Shape(1024, 1024)) is sdxl
    assert sdxl.at(Shape(1024, 1024, guidance=2)) is sdxl


def test_a_measured_shape_takes_what_was_measured(sdxl: Profile) -> None:
    small = sdxl.at(Shape(512, 512))
    assert [small.table("unet")(n) for n in (1, 2, 4, 8)] == [0.024, 0.030, 0.048, 0.090]
    assert small.table("encode")(8) == sdxl.table("encode")(8)  # fixed
    assert small is sdxl.at(Shape(512, 512))


def test_images_of_one_prompt_are_rows_of_the_batch(sdxl: Profile) -> None:
    two, one = sdxl.at(Shape(512, 512, images=2)), sdxl.at(Shape(512, 512))
    assert [two.table("unet")(n) for n in (1, 2, 4)] == [one.table("unet")(2 * n) for n in (1, 2, 4)]
    assert two.table("unet").largest == 4
    assert two.table("vae")(2) == one.table("vae")(4)
    assert two.table("encode")(4) == one.table("encode")(4)  # a prompt is encoded once
    with pytest.raises(BadInput, match="is a batch of 9 of unet"):
        sdxl.at(Shape(512, 512, images=9))


def test_guidance_counts_in_the_loop_alone(sdxl: Profile) -> None:
    double, usual = sdxl.at(Shape(512, 512, guidance=4)), sdxl.at(Shape(512, 512))
    assert double.table("unet")(3) == usual.table("unet")(6)
    assert double.table("vae")(3) == usual.table("vae")(3)
    with pytest.raises(BadInput, match="nobody measured 512x512, guidance 1"):
        sdxl.at(Shape(512, 512, guidance=1))


def test_sizes_between_lie_on_the_line_by_pixels(sdxl: Profile) -> None:
    small, large = sdxl.at(Shape(512, 512)), sdxl
    share = (768 * 768 - 512 * 512) / (1024 * 1024 - 512 * 512)
    between = sdxl.at(Shape(768, 768))
    for n in (1, 2, 3, 8):
        a, b = small.table("unet")(n), large.table("unet")(n)
        assert between.table("unet")(n) == pytest.approx(a + share * (b - a))
    assert between.table("vae").largest == 4  # as far as both reach
    assert sdxl.at(Shape(512, 2048)).table("unet")(3) == large.table("unet")(3)  # as many pixels


@pytest.mark.parametrize("shape", [Shape(256, 256), Shape(2048, 2049), Shape(1024, 1024, frames=16)])
def test_beyond_what_was_measured_is_refused(sdxl: Profile, shape: Shape) -> None:
    with pytest.raises(BadInput, match=f"nobody measured {shape}"):
        sdxl.at(shape)


def test_without_a_rule_only_measured_sizes_are_known() -> None:
    content = said()
    del content["shapes"]["between"]
    profile = Profile(check(content, ProfileFile, where="mine"))
    assert profile.at(Shape(2048, 2048)).table("unet")(2) == 0.570
    with pytest.raises(BadInput, match=r"nobody measured 768x768 .*shapes.between: pixels"):
        profile.at(Shape(768, 768))


def test_a_profile_that_does_not_say_its_size_knows_no_shape() -> None:
    with pytest.raises(BadInput, match="does not say of which size"):
        Profile(check({k: v for k, v in said().items() if k not in ("image", "shapes")}, ProfileFile, where="x")).at(
            Shape(512, 512)
        )


def test_costs_that_stand_for_a_table_are_of_the_profiles_own_shape() -> None:
    content, source = said(), {"file": "none"}
    cost = {"unit": "seconds", "modules": ["unet"], "meaning": "m", "how": "h", "source": source}
    content["costs"] = {
        "unet.device": {**cost, "by_batch": {"batch": [1, 8], "values": [0.05, 0.3]}},
        "unet.host": {**cost, "by_batch": {"batch": [1, 8], "values": [0.01, 0.01]}},
        "unet.join": {**cost, "value": 0.001},
    }
    profile = Profile(check(content, ProfileFile, where="mine"))
    assert set(profile.at(Shape(512, 512)).costs) == {"unet.join"}
    assert set(profile.at(Shape(1024, 1024)).costs) == {"unet.device", "unet.host", "unet.join"}


def faults() -> list[tuple[str, Any]]:
    def no_image(content: dict[str, Any]) -> None:
        del content["image"]

    def unknown_fixed(content: dict[str, Any]) -> None:
        content["shapes"]["fixed"] = ["encoder"]

    def module_missing(content: dict[str, Any]) -> None:
        del content["shapes"]["measured"][0]["modules"]["vae"]

    def twice(content: dict[str, Any]) -> None:
        content["shapes"]["measured"].append(copy.deepcopy(content["shapes"]["measured"][0]))

    def its_own(content: dict[str, Any]) -> None:
        content["shapes"]["measured"][0]["size"] = [1024, 1024]

    def no_scheduler(content: dict[str, Any]) -> None:
        tables = content["shapes"]["measured"][0]["modules"]["vae"]["tables"]
        tables["measured"] = tables.pop("scheduler")

    def rule(content: dict[str, Any]) -> None:
        content["shapes"]["between"] = "area"

    return [
        ("image: other shapes are given", no_image),
        ("unknown module 'encoder'", unknown_fixed),
        ("it has modules unet", module_missing),
        ("stands twice", twice),
        ("stands twice", its_own),
        ("no table 'scheduler'", no_scheduler),
        ("shapes.between", rule),
    ]


@pytest.mark.parametrize(("message", "change"), faults())
def test_what_is_wrong_is_told_in_a_line(message: str, change: Any, tmp_path: Path) -> None:
    content = said()
    change(content)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput, match=message):
        load(tmp_path / "mine.yaml")


def test_memory_follows_by_the_same_rules(sdxl: Profile) -> None:
    own = sdxl.memory_of(Shape(1024, 1024))
    assert own is not None
    assert (own.slot, own.peak(1), own.peak(8)) == (0.02, 3.0, 21.0)
    pair = sdxl.memory_of(Shape(1024, 1024, images=2))
    assert pair is not None
    assert (pair.slot, pair.peak(4), pair.peak.largest) == (0.04, 21.0, 4)
    between = sdxl.memory_of(Shape(768, 768))
    share = (768 * 768 - 512 * 512) / (1024 * 1024 - 512 * 512)
    assert between is not None
    assert between.peak(1) == pytest.approx(1.0 + share * 2.0)
    content = said()
    for shape in (content["shapes"], *content["shapes"]["measured"]):
        del shape["memory"]
    del content["shapes"]["weights_gib"]
    assert Profile(check(content, ProfileFile, where="mine")).memory_of(Shape(512, 512)) is None


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("weights_gib: the memory of a shape is given", lambda c: c["shapes"].pop("weights_gib")),
        ("measured.1.memory: its memory is not given", lambda c: c["shapes"]["measured"][1].pop("memory")),
        ("device.memory_gib: nobody knows", lambda c: c["device"].pop("memory_gib")),
        ("batch sizes must increase", lambda c: c["shapes"]["memory"]["peak"].update(batch=[8, 1])),
    ],
)
def test_memory_is_known_of_all_shapes_or_of_none(message: str, change: Any) -> None:
    content = said()
    change(content)
    with pytest.raises(BadInput, match=message):
        check(content, ProfileFile, where="mine")
