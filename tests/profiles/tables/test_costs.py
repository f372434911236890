"""The registry of costs: what may stand in a profile, and that nobody makes names up beside it."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servetwin.policies
import servetwin.profiles
from servetwin.core import BadInput, Policy
from servetwin.core.llm import TokenPolicy
from servetwin.profiles import costs, load, names
from servetwin.profiles.costs_page import as_markdown
from servetwin.profiles.tables import cost_names
from servetwin.profiles.tables.cost_names import CostName
from servetwin.profiles.tables.costs import NOBODY, REGISTRY

ROOT = Path(servetwin.profiles.__file__).parents[1]
DIFFUSION, LLM = "h100-quiet/sd15-512-graphs", "h100-long/opt-13b-tp1-0"

Save = Callable[..., Path]


def content(name: str) -> dict[str, Any]:
    return load(name).data.model_dump(mode="json", exclude_none=True)


#: profile, what stands there, what is written for it, what is said
MISSPELT = [
    (DIFFUSION, "unet.join", "unet.jion", "costs: unknown cost 'unet.jion' (right would be: unet.join)"),
    (
        DIFFUSION,
        "unet.device_beside.vae",
        "unet.device_besides.vae",
        "costs: unknown cost 'unet.device_besides.vae' (right would be: unet.device_beside.vae)",
    ),
    (DIFFUSION, "unet.device_beside.vae.2", "unet.device_beside.vea.2", "(right would be: unet.device_beside.vae.2)"),
    (DIFFUSION, "unet.device_beside.vae", "unet.device_beside.unet", "unknown cost 'unet.device_beside.unet'"),
    (
        DIFFUSION,
        "unet.device_beside.vae.2",
        "unet.device_beside.vae.two",
        "unknown cost 'unet.device_beside.vae.two'",
    ),
    (DIFFUSION, "unet.device_beside.vae.2", "unet.device_beside.vae.02", "(right would be: unet.device_beside.vae"),
    (
        DIFFUSION,
        "unet.device_beside.clip_and_vae",
        "unet.device_beside.vae_and_clip",
        "(right would be: unet.device_beside.clip_and_vae)",
    ),
    (DIFFUSION, "unet.join", "unet.join_ms", "unknown cost 'unet.join_ms' (right would be: unet.join"),
    (DIFFUSION, "unet.join", "clip.join", "unknown cost 'clip.join'"),
    (DIFFUSION, "clip.time", "unet.time", "unknown cost 'unet.time'"),
    (DIFFUSION, "transport.client.clip", "transport.clint.clip", "(right would be: transport.client.clip)"),
    (DIFFUSION, "unet.gap.neustream", "unet.gap.neustraem", "(right would be: unet.gap.neustream)"),
    (LLM, "decode.recent_load.64", "decode.pace.64", "(right would be: decode.recent_load.64)"),
    (
        "h200-chat/opt-13b",
        "host.slowdown_lasts",
        "host.pace_lasts",
        "has another name now (right would be: host.slowdown_lasts)",
    ),
    (DIFFUSION, "whole.ratio", "whole.rate", "unknown cost 'whole.rate' (right would be: whole.ratio)"),
    (DIFFUSION, "unet.join", "step.begins", "unknown cost 'step.begins'"),
    (LLM, "step.begins", "step.begin", "(right would be: step.begins)"),
    (LLM, "host.stall_every.changing", "host.stall_every.changes", "(right would be: host.stall_every.changing)"),
    (LLM, "decode.recent_load.64", "decoding.recent_load.64", "(right would be: decode.recent_load.64)"),
    (LLM, "decode.ratio", "mixed.ratio", "unknown cost 'mixed.ratio'"),
    (LLM, "decode.ratio", "whole.ratio", "unknown cost 'whole.ratio'"),
]


@pytest.mark.parametrize(
    ("profile", "right", "wrong", "message"), MISSPELT, ids=[f"{b}-{i}" for i, (_, _, b, _) in enumerate(MISSPELT)]
)
def test_an_unknown_cost_is_refused_with_the_nearest_known(
    profile: str, right: str, wrong: str, message: str, save: Save
) -> None:
    data = content(profile)
    assert right in data["costs"]
    data["costs"] = {wrong if name == right else name: cost for name, cost in data["costs"].items()}
    path = save(data)
    with pytest.raises(BadInput) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: costs")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("profile", "name", "change", "message"),
    [
        (DIFFUSION, "unet.join", {"unit": "ratio"}, "costs.unet.join.unit: is 'ratio' (right would be: 'seconds')"),
        (
            DIFFUSION,
            "unet.leave",
            {"line": None, "value": 1e-3},
            "costs.unet.leave: is given as value (right would be: line)",
        ),
        (
            DIFFUSION,
            "unet.residual",
            {"quantiles": None, "value": 1.0},
            "is given as value (right would be: quantiles)",
        ),
        (DIFFUSION, "unet.pause", {"value": -1e-3}, "costs.unet.pause: holds -0.001 (right would be: 0 or more)"),
        (
            DIFFUSION,
            "unet.device_beside.vae",
            None,
            "costs.unet.device_beside.vae.2: is read beside another cost only",
        ),
        (
            LLM,
            "prefill.recent_load",
            None,
            "is read beside another cost only, which is not there (right would be: prefill.recent_load",
        ),
        (LLM, "host.stall_every", None, "(right would be: host.stall_every too)"),
        (
            LLM,
            "decode.recent_load.64",
            {"by_batch": {"batch": [9], "values": [0.0]}},
            "holds 0 (right would be: above 0)",
        ),
    ],
)
def test_a_cost_is_as_the_registry_says(
    profile: str, name: str, change: dict[str, Any] | None, message: str, save: Save
) -> None:
    data = content(profile)
    if change is None:
        del data["costs"][name]
    else:
        data["costs"][name] = {k: v for k, v in (data["costs"][name] | change).items() if v is not None}
    with pytest.raises(BadInput) as error:
        load(save(data))
    assert message in str(error.value)


def test_a_cost_in_a_file_beside_is_checked_too(small: dict[str, Any], save: Save) -> None:
    path = save(small)
    more = {"meaning": "x", "unit": "seconds", "value": 1.0, "how": "x", "source": {"file": "x"}}
    beside = {"schema_version": 1, "profile": "mine/toy", "description": "later", "costs": {"unet.pauze": more}}
    file = save(beside, "toy.costs.yaml")
    with pytest.raises(BadInput, match=r"unknown cost 'unet.pauze' .right would be: unet.pause") as error:
        load(path)
    assert str(error.value).startswith(f"{file}: costs: ")


def test_a_policy_of_ones_own_has_costs(small: dict[str, Any], save: Save) -> None:
    cost = small["costs"]["unet.join_together"]
    small["costs"] |= {"unet.gap": cost, "unet.gap.mine": cost, "unet.gap.edf2": cost}
    cost["by_batch"] = {"batch": [1], "values": [0.5]}
    assert load(save(small)).cost("unet.gap.mine").upto(1)[1] == 0.5


def test_the_policies_whose_names_may_be_misspelt_are_there() -> None:
    modules = [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(servetwin.policies.__path__, "servetwin.policies.")
        if not m.name.rpartition(".")[2].startswith("_")  # parts of a policy
    ]
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type) and issubclass(c, Policy)}
    classes = {
        c for c in classes if not issubclass(c, TokenPolicy) and not c.__module__.rpartition(".")[2].startswith("_")
    }
    assert set(cost_names.POLICIES) <= {c.__name__.lower() for c in classes - {Policy}}


@pytest.mark.checkout
def test_the_documents_hold_the_registry() -> None:
    page = (ROOT / "docs" / "reference" / "profiles.md").read_text(encoding="utf-8")
    assert page.split("<!-- costs -->\n")[1].split("<!-- end of costs -->")[0] == as_markdown()


def test_the_examples_in_the_docstrings() -> None:
    result = doctest.testmod(costs)
    assert result.attempted
    assert not result.failed


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_who_reads_a_cost_is_as_the_registry_says() -> None:
    """What is said to be read is looked up by the simulator, and what nobody reads is not."""
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for path, tree in sources("sim", "experiments", "profiles")
        if not path.name.startswith("costs") and "neustream_artifact" not in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    for constant, entry in vars(costs).items():
        if isinstance(entry, CostName):
            assert (constant in used) == (entry.read_by != NOBODY), constant


def test_nobody_makes_up_names_of_costs() -> None:
    """No text in the sources is a name of the registry, whole or put together, but in the registry."""
    known = cost_names.Known(("unet", "x", "vae"), ("unet", "x"), tokens=True)
    found = []
    for path, tree in sources("sim", "real", "experiments", "profiles"):
        if path.name in ("costs.py", "costs_page.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "x" for v in node.values]
                text = "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            options = (text, text.replace("x", "2"), text.replace("x", "decode", 1))
            if "." in text and any(entry.match(t, known) for entry in REGISTRY for t in options):
                found.append(f"{path.name}:{node.lineno}: {text}")
    assert found == []


#: What no profile that comes along has.
BY_USERS = (
    costs.SWAP,
    costs.HANDOVER,
    costs.HOST_BESIDE_BATCH,
    costs.FP8_KV,
    costs.DRAFT,
    costs.HOP,
    costs.LORA_LOAD,
    costs.LORA_SLOWDOWN,
    costs.TOLD,  # of engines on several devices, of which no shipped profile was measured so
    costs.TOLD_EACH,
)


def test_every_shipped_cost_is_used_or_told() -> None:
    """No entry of the registry is one that no profile has, but for what users give themselves."""
    known = {name for profile in names() for name in load(profile).costs}
    for entry in REGISTRY:
        stem = entry.pattern.split("<")[0] if entry.pattern[0] != "<" else entry.pattern.split(">")[1].split("<")[0]
        given = entry in BY_USERS
        assert given or any(stem in name for name in known)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("unet.join", {"value": -1.0}, "costs.unet.join: -1 s for each of"),
        ("unet.join", {"value": 75.0}, "holds 75 (right would be: 60 at most, as it is in seconds)"),
        ("unet.device_beside.vae", {"value": 50.0}, "value 50 lies outside of by_batch's"),
        (
            "unet.device_beside.vae",
            {"value": 50.0, "by_batch": None},
            "1.5 at most, as it is a ratio: 1 is as fast as alone",
        ),
        ("vae.time", {"by_batch": None, "line": {"constant": 0.1, "per_request": -0.05}}, "is -0."),
    ],
)
def test_costs_that_cannot_be_are_refused(save: Save, name: str, change: dict[str, Any], said: str) -> None:
    data = content(DIFFUSION)
    data["costs"][name] = {k: v for k, v in {**data["costs"][name], **change}.items() if v is not None}
    with pytest.raises(BadInput) as refused:
        load(save(data))
    assert f"costs.{name}" in str(refused.value)
    assert said in str(refused.value)


def test_a_gap_of_a_policy_leaves_some_of_an_iteration(save: Save) -> None:
    data = content(DIFFUSION)
    made = data["costs"]["unet.join"]
    data["costs"] |= {"unet.gap": {**made, "value": 5.0}, "unet.gap.mine": {**made, "value": 0.001}}
    with pytest.raises(BadInput, match=r"costs\.unet\.gap\.\w+: 5 s less than unet\.gap, of an iteration's"):
        load(save(data))


def test_a_join_that_leaves_some_of_an_iteration_may_be_negative(save: Save) -> None:
    data = content(DIFFUSION)
    data["costs"]["unet.join"]["value"] = -1e-5
    assert load(save(data)).seconds("unet.join") == -1e-5


def test_an_unknown_cost_is_answered_with_what_is_read_for_its_module(save: Save) -> None:
    data = content(DIFFUSION)
    data["costs"]["unet.zzz"] = data["costs"]["unet.join"]
    with pytest.raises(BadInput, match=r"right would be: unet\.\w+, unet\.\w+, unet\.\w+\)"):
        load(save(data))
