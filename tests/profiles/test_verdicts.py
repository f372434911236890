"""The verdict on a profile: when it is taken, when it is loaded, and on all that are shipped."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from servetwin.core import ServeTwinError
from servetwin.profiles import load, names, verdict
from servetwin.profiles.schema import ProfileFile
from servetwin.profiles.verdict import SAMPLES, undisturbed, with_verdict

Save = Callable[..., Path]
#: Those that are not clean, by kind; all others are.
KNOWN = {
    "h200-cached/llama-3.1-8b": {"blind", "disturbed"},
    "h200-chat/llama-3.1-8b": {"blind", "disturbed"},
    "h200-chat/opt-13b": {"blind"},
    "h200-full/llama-3.1-8b": {"blind", "disturbed", "regions"},
    "h200-full/llama-3.1-8b-caching": {"blind", "disturbed"},
    "h200-full/opt-13b": {"blind"},
    "h200-lengths/llama-3.1-8b": {"blind", "disturbed"},
    "h200-lengths/opt-13b": {"blind"},
    "h200-policies/opt-13b": {"blind"},
    "h200-prefix/llama-3.1-8b": {"blind", "disturbed"},
    "h200-prefix/llama-3.1-8b-served": {"blind", "disturbed"},
    "h200-requests/llama-3.1-8b": {"blind", "disturbed"},
    "h200-requests/llama-3.1-8b-caching": {"blind", "disturbed"},
    "h200-servers/llama-3.1-8b": {"blind", "disturbed"},
    "h200-servers/qwen3-30b-a3b": {"blind"},
    "h200-steps/llama-3.1-8b": {"blind", "disturbed"},
    "h200-steps/opt-13b": {"blind"},
    "a6000/opt-13b-tp1": {"samples"},
    "a6000/opt-30b-tp2": {"samples"},
    "a6000/opt-66b-tp4": {"samples"},
    "cpu/tiny-dit": {"falls", "mean"},
    "cpu/tiny-opt": {"samples", "jump"},
    "cpu/tiny-palette": {"mean"},
    "cpu/tiny-sd": {"mean"},
    "h100-again/sd15-512-graphs": {"samples"},
    "h100-async/opt-13b-tp1": {"jump"},
    "h100-knees/opt-13b-tp1": {"samples", "jump"},
    **{f"h100-long/opt-13b-tp1-{i}": {"samples", "disturbed", "jump"} for i in range(4)},
    "h100-quiet/sd15-512-graphs": {"samples"},
    "h100/dit-s2-256-graphs": {"mean"},
    "h100/opt-13b-tp1": {"samples", "disturbed", "jump"},
    "h100/opt-13b-tp1-eager": {"samples", "disturbed", "falls"},
    "h100/sd15-512-graphs": {"samples"},
    "h200-again/sd15-512-graphs": {"samples"},
    "h200-long/opt-13b-tp1-0": {"samples"},
    **{f"h200-long/opt-13b-tp1-{i}": {"samples", "jump"} for i in range(1, 4)},
    "h200-long/opt-30b-tp1": {"samples"},
    "h200-long/opt-66b-tp2": {"samples"},
    "h200/codellama-7b": {"samples", "jump"},
    "h200/opt-13b-tp1": {"samples", "jump"},
    "h200/opt-30b-tp1": {"samples", "jump"},
    "h200/sd15-512-graphs": {"samples"},
    "rtx4090/dit-xl2-256": {"falls"},
    "rtx4090/sd15-256": {"falls"},
    "rtx4090/sd15-512": {"samples"},
}


def kinds(data: ProfileFile) -> set[str]:
    return {finding.kind for finding in verdict.of(data)}


def test_the_examples_in_the_docstrings() -> None:
    result = doctest.testmod(verdict)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", names())
def test_shipped_profiles_are_clean_or_known_not_to_be(name: str) -> None:
    data = load(name).data
    if data.basis is not None:  # tables of others, which are no smoother than kernels are; what is told is kept
        assert kinds(data) <= {"disturbed", "falls"}
        assert data.verdict == verdict.lines(data)
        return
    assert kinds(data) == KNOWN.get(name, set())
    assert (verdict.short(data) is None) == (name not in KNOWN)


def put(small: dict[str, Any], **columns: Any) -> ProfileFile:
    small["modules"]["unet"]["tables"]["scheduler"] |= columns
    return ProfileFile.model_validate(small)


@pytest.mark.parametrize(
    ("columns", "kind", "text"),
    [
        ({"samples": [9, 4, 9]}, "samples", "unet (scheduler): 4 samples at batch 2, fewer than 5"),
        ({"seconds": [0.25, 0.2, 1.0]}, "falls", "unet (scheduler): batch 2 takes 20 % less than batch 1"),
        ({"seconds": [0.25, 0.5, 0.24]}, "falls", "unet (scheduler): batch 4 takes 52 % less than batch 2"),
        (
            {"statistic": "mean", "spread": {"p50": [0.25, 0.4, 1.0]}},
            "mean",
            "unet (scheduler): means up to 1.25 times the median, at batch 2",
        ),
        (
            {"spread": {"p99": [0.3, 0.6, 2.5]}},
            "tail",
            "unet (scheduler): 99th percentiles up to 2.5 times the median, at batch 4",
        ),
    ],
)
def test_what_is_not_clean(columns: dict[str, Any], kind: str, text: str, small: dict[str, Any]) -> None:
    assert verdict.of(put(small)) == ()
    assert verdict.of(put(small, **columns)) == (verdict.Finding(kind, text),)


@pytest.mark.parametrize(
    "columns", [{"seconds": [0.25, 0.245, 1.0]}, {"statistic": "mean", "spread": {"p50": [0.25, 0.49, 1.0]}}]
)
def test_what_is_within_the_noise_is_clean(columns: dict[str, Any], small: dict[str, Any]) -> None:
    assert verdict.of(put(small, **columns)) == ()


def test_a_row_of_prompts_that_falls_alone_is_not_clean() -> None:
    data = load("h200-long/opt-30b-tp1").data.model_dump(mode="json", exclude_none=True)
    assert data["tokens"]["kinds"]["measured"] == data["tokens"]["kinds"]["scheduler"]
    for kind in ("measured", "scheduler"):
        rows = data["tokens"]["kinds"][kind]["prefill"]["seconds"]
        assert len(rows) > 2
        rows[0][-1] *= 0.3
    found = verdict.of(ProfileFile.model_validate(data))
    assert [f.text for f in found if f.kind == "falls"] == [
        "prefill (measured), 1 prompt: a total of 2047 takes 41 % less than a total of 1024"
    ]


def test_the_verdict_is_kept_and_checked(small: dict[str, Any], save: Save) -> None:
    table = small["modules"]["unet"]["tables"]["scheduler"]
    table["samples"] = [9, 3, 9]
    content = with_verdict(small)
    assert content["verdict"] == ["unet (scheduler): 3 samples at batch 2, fewer than 5"]
    assert with_verdict(content) == content
    loaded = load(save(content))
    assert kinds(loaded.data) == {"samples"}
    assert load(save({**small, "verdict": None}, "none.yaml")).digest == loaded.digest
    # Numbers that were changed afterwards.
    content["modules"]["unet"]["tables"]["scheduler"]["samples"] = [9, 9, 9]
    changed = load(save(content, "changed.yaml"))
    assert kinds(changed.data) == {"kept"}
    assert verdict.short(changed.data) == "a verdict of other numbers"


def test_a_file_may_hold_a_verdict_of_lines_only(small: dict[str, Any], save: Save) -> None:
    path = save({**small, "verdict": "clean"})
    with pytest.raises(Exception, match=r"verdict: is 'clean' .right would be: a list"):
        load(path)


def test_samples_of_a_host_that_stood_still_are_left_out() -> None:
    usual = [1.0, 1.01, 0.99, 1.02, 0.98]
    assert undisturbed([*usual, 2.0]) == usual
    assert undisturbed([*usual, 1.05]) == [*usual, 1.05]  # less than 10 % more
    assert undisturbed([0.2, *usual]) == [0.2, *usual]  # nothing makes a step short
    assert undisturbed([1.0, 1.0, 1.0, 2.0]) == [1.0, 1.0, 1.0, 2.0]  # too few to tell
    wide = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert undisturbed(wide) == wide
    assert len(usual) == SAMPLES


def test_what_nobody_measured_is_told() -> None:
    told = verdict.beyond(load("h100-knees/opt-13b-tp1").data)
    assert any("128, 224, 256 sequences, measured at one context" in line for line in told)
    assert any("more than 500 tokens of context each" in line for line in told)
    assert verdict.beyond(load("rtx4090/sd15-512").data) == ()


def test_what_was_taken_before_is_read_as_it_is() -> None:
    """No shipped file was given a verdict afterwards."""
    for name in [name for name in names() if load(name).data.basis is None][:4]:
        text = (Path(servetwin_data()) / f"{name}.yaml").read_text()
        assert "verdict" not in yaml.safe_load(text)


def servetwin_data() -> Path:
    from servetwin.profiles.profile import DATA

    return DATA


def test_what_was_measured_under_disturbance_is_no_profile_and_said_in_one_line(small: dict[str, Any]) -> None:
    cost = {"meaning": "m", "unit": "seconds", "value": 75.0, "how": "made up", "source": {"file": "this"}}
    small["costs"] = {"unet.join": cost}
    with pytest.raises(ServeTwinError) as refused:
        with_verdict(small)
    assert "\n" not in str(refused.value)
    for said in ("costs.unet.join", "75", "nothing else running on this machine"):
        assert said in str(refused.value)


def test_a_form_that_does_not_go_on_from_the_table_is_not_clean() -> None:
    told = verdict.lines(load("h100/opt-13b-tp1").data)
    assert any(
        "a prompt of 2048 tokens takes 4.2 times what one of 2047 does, by least squares" in line for line in told
    )
    assert "that do not go on from it" in (verdict.short(load("h100/opt-13b-tp1").data) or "")
