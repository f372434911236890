"""What a server takes before its engine has a request, in simulation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from servetwin.core import BadInput
from servetwin.core.llm import TokenRequest
from servetwin.experiments.assembly.build import build
from servetwin.experiments.backends.profile_server import first_tokens_alone
from servetwin.experiments.spec.loading import load as experiment_of
from servetwin.experiments.validation.replay.external import Ends
from servetwin.profiles import load

PROMPTS = (20, 100, 160)


def served(folder: Path, **forms: object) -> str:
    """A profile of a server, which takes that long."""
    content = load("cpu/tiny-opt").data.model_dump(mode="json", exclude_none=True, exclude_unset=True, by_alias=True)
    cost = {"meaning": "before the engine", "unit": "seconds", **forms, "how": "made up", "source": {"file": "here"}}
    content["costs"] = {**content.get("costs", {}), "server.before_engine": cost}
    path = folder / "served.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def first_tokens(profile: str, **time: object) -> list[float]:
    """Seconds until the first token of requests alone."""
    spec = experiment_of("tiny-opt-cpu", [("deployment.devices.gpu0", profile), ("time.noise", False), *time.items()])
    log = Ends()
    made = build(spec, log)
    made.source = iter(TokenRequest(i, 10.0 * i, {"llm": (n, 2)}, {"llm": 2}) for i, n in enumerate(PROMPTS))
    made.play()
    return [log.ends[i][0] - 10.0 * i for i in range(len(PROMPTS))]


def test_first_tokens_come_later_by_the_length_of_the_prompt(tmp_path: Path) -> None:
    alone = first_tokens("cpu/tiny-opt")
    line = served(tmp_path, line={"constant": 0.01, "per_request": 0.001})
    assert first_tokens(line) == pytest.approx([t + 0.01 + 0.001 * n for t, n in zip(alone, PROMPTS, strict=True)])
    assert first_tokens(line, **{"time.transport": False}) == pytest.approx(alone)


def test_or_by_one_value(tmp_path: Path) -> None:
    alone = first_tokens("cpu/tiny-opt")
    assert first_tokens(served(tmp_path, value=0.25)) == pytest.approx([t + 0.25 for t in alone])


def test_a_long_prompt_may_be_overtaken(tmp_path: Path) -> None:
    """It is in the server's hands while a short one, sent after it, gets through."""
    profile = served(tmp_path, line={"constant": 0.0, "per_request": 0.01})
    log = Ends()
    made = build(experiment_of("tiny-opt-cpu", [("deployment.devices.gpu0", profile), ("time.noise", False)]), log)
    made.source = iter(
        [TokenRequest(0, 0.0, {"llm": (160, 2)}, {"llm": 2}), TokenRequest(1, 0.1, {"llm": (10, 2)}, {"llm": 2})]
    )
    made.play()
    assert log.ends[1][0] < log.ends[0][0]


def test_alone_without_noise_is_what_an_engine_takes() -> None:
    assert first_tokens_alone("cpu/tiny-opt", PROMPTS) == pytest.approx(first_tokens("cpu/tiny-opt"), rel=1e-6)


def test_no_diffusion_model_has_a_server_like_that(tmp_path: Path) -> None:
    content = load("cpu/tiny-dit").data.model_dump(mode="json", exclude_none=True, exclude_unset=True, by_alias=True)
    cost = {"meaning": "x", "unit": "seconds", "value": 0.1, "how": "made up", "source": {"file": "here"}}
    content["costs"] = {**content.get("costs", {}), "server.before_engine": cost}
    path = tmp_path / "dit.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput, match=r"server\.before_engine"):
        load(str(path))
