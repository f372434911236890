"""Pipelines: graphs of modules, grouped into stages by a placement."""

from __future__ import annotations

import doctest
import importlib

import pytest
from servetwin.core import BadInput, Module, Pipeline

SD = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"), name="sd")


def diamond() -> Pipeline:
    modules = [Module("text"), Module("image", loop=True), Module("sound", loop=True), Module("join")]
    edges = [("text", "image"), ("text", "sound"), ("image", "join"), ("sound", "join")]
    return Pipeline(modules, edges)


@pytest.mark.parametrize("name", ["pipeline", "slo", "random_streams"])
def test_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"servetwin.core.{name}"))
    assert result.attempted
    assert not result.failed


def test_a_worker_for_each_module() -> None:
    clip, unet, last = SD.stages([["clip"], ["unet"], ["vae", "safety"]])
    assert (clip.next, unet.next, last.next) == ([unet], [last], [])
    assert (clip.inputs, unet.inputs, last.inputs) == (0, 1, 1)
    assert (clip.rest, unet.rest, last.rest) == (("unet", "vae", "safety"), ("vae", "safety"), ())
    assert (clip.hops, unet.hops, last.hops) == (2, 1, 0)
    assert (clip.loop, unet.loop) == (None, "unet")
    assert last.after == ("vae", "safety")


def test_one_worker_for_all() -> None:
    (whole,) = SD.stages([["clip", "unet", "vae", "safety"]])
    assert (whole.before, whole.loop, whole.after) == (("clip",), "unet", ("vae", "safety"))
    assert whole.name == "clip+unet+vae+safety"


def test_stages_come_in_order_of_the_graph_whatever_the_placement() -> None:
    stages = SD.stages([["vae", "safety"], ["clip"], ["unet"]])
    assert [s.name for s in stages] == ["clip", "unet", "vae+safety"]


def test_branches_and_joins() -> None:
    text, image, sound, join = diamond().stages([["text"], ["image"], ["sound"], ["join"]])
    assert text.next == [image, sound]
    assert (join.inputs, image.inputs, text.inputs) == (2, 1, 0)
    assert text.rest == ("image", "sound", "join")
    assert (text.hops, sound.hops) == (2, 1)


def test_two_placements_of_one_pipeline_share_nothing() -> None:
    first, second = SD.stages([["clip"], ["unet"], ["vae", "safety"]]), SD.stages([["clip", "unet", "vae", "safety"]])
    assert first[0] is not second[0]
    assert first[0].next == [first[1]]


@pytest.mark.parametrize(
    ("modules", "edges", "message"),
    [
        ([], [], "a pipeline needs at least one module"),
        (["a", "a"], [], "module 'a' stands twice in the pipeline"),
        (["a"], [("a", "b")], r"edge a -> b names unknown module 'b' \(right would be: one of a\)"),
        (["a", "b", "c"], [("a", "b"), ("b", "c"), ("c", "b")], "the pipeline has a cycle through b, c"),
        (["a"], [("a", "a")], "the pipeline has a cycle through a"),
    ],
)
def test_a_wrong_graph_is_told_in_one_line(modules: list[str], edges: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}") as told:
        Pipeline([Module(m) for m in modules], edges)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ([["text", "image"], ["sound"], ["join"]], "text and image cannot share a stage"),
        ([["text"], ["image", "join"], ["sound"]], "image and join cannot share a stage"),
        ([["text"], ["image"], ["sound"]], "no worker serves join"),
        ([["text"], ["image"], ["sound"], ["join"], ["text"]], "module 'text' is placed twice"),
        ([["text"], ["video"]], "unknown module 'video' in a placement"),
        ([["text"], []], "a worker serves no module"),
    ],
)
def test_a_wrong_placement_is_told_in_one_line(placement: list[list[str]], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}"):
        diamond().stages(placement)


def test_a_stage_holds_one_loop_at_most() -> None:
    pipeline = Pipeline.chain(Module("prefill", loop=True), Module("decode", loop=True))
    with pytest.raises(BadInput, match=r"stage prefill\+decode holds two loops: prefill, decode"):
        pipeline.stages([["prefill", "decode"]])


def test_the_pipeline_is_named_where_it_has_a_name() -> None:
    with pytest.raises(BadInput, match=r"^mine: module 'a' stands twice"):
        Pipeline([Module("a"), Module("a")], [], name="mine")
