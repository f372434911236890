"""Pipelines, and how a placement groups their modules into stages."""

from __future__ import annotations

import pytest
from servetwin.core import BadInput, Module, Pipeline

SD = Pipeline.chain(Module("clip"), Module("unet", loop=True), Module("vae"), Module("safety"))


def test_each_module_a_stage_of_its_own() -> None:
    clip, unet, last = SD.stages([["clip"], ["unet"], ["vae", "safety"]])
    assert (clip.loop, unet.loop, last.loop) == (None, "unet", None)
    assert clip.next == [unet]
    assert unet.rest == ("vae", "safety")
    assert [s.hops for s in (clip, unet, last)] == [2, 1, 0]
    assert last.after == ("vae", "safety")


def test_one_stage_for_all_runs_what_is_around_the_loop_with_it() -> None:
    (whole,) = SD.stages([["clip", "unet", "vae", "safety"]])
    assert (whole.before, whole.loop, whole.after) == (("clip",), "unet", ("vae", "safety"))


def test_branches_join() -> None:
    diamond = Pipeline([Module(m) for m in "abcd"], [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    a, b, c, d = diamond.stages([["a"], ["b"], ["c"], ["d"]])
    assert a.next == [b, c]
    assert (a.inputs, d.inputs) == (0, 2)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ([["clip"], ["unet"]], "no worker serves vae, safety"),
        ([["clip"], ["unet"], ["vae", "safety"], ["vae"]], "placed twice"),
        ([["clip", "vae"], ["unet"], ["safety"]], "cannot share a stage"),
        ([["clip"], ["unnet"], ["vae", "safety"]], "unknown module 'unnet'"),
        ([["clip"], ["unet"], ["vae", "safety"], []], "serves no module"),
    ],
)
def test_a_wrong_placement_is_told(placement: list[list[str]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SD.stages(placement)


def test_two_loops_cannot_share_a_stage() -> None:
    pipeline = Pipeline.chain(Module("a", loop=True), Module("b", loop=True))
    with pytest.raises(BadInput, match="two loops: a, b"):
        pipeline.stages([["a", "b"]])


@pytest.mark.parametrize(
    ("edges", "message"),
    [([("a", "b"), ("b", "a")], "cycle through a, b"), ([("a", "x")], "unknown module 'x'")],
)
def test_a_wrong_graph_is_told(edges: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Pipeline([Module("a"), Module("b")], edges)


def test_a_name_stands_once() -> None:
    with pytest.raises(BadInput, match="'a' stands twice"):
        Pipeline.chain(Module("a"), Module("a"))
