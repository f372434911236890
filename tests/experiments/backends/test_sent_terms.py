"""What a request says of itself travels to vLLM's scheduler, and nonsense from a client does not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from servetwin.core.llm import TokenRequest
from servetwin.real.vllm.plan import KEY, Planned, said_of, told


def sent(given: object) -> dict[str, Any]:
    return told(SimpleNamespace(sampling_params=SimpleNamespace(extra_args={KEY: given})))


@pytest.mark.parametrize("form", [dict, json.dumps], ids=["in the process", "over HTTP"])
def test_terms_arrive_as_they_were_sent(form) -> None:
    terms = {"priority": -3, "tenant": "ann", "weight": 0.5, "class_name": "chat", "predicted": {"llm": 41}}
    request = TokenRequest(7, 0.0, {"llm": (10, 90)}, **terms)
    planned = Planned(7, 0.0, 10, 60, 90, said_of(request, 41))
    assert sent(form(planned.told())) == {
        "id": 7, "limit": 90, "priority": -3, "tenant": "ann", "weight": 0.5, "class": "chat", "predicted": 41,
    }  # fmt: skip


def test_what_is_usual_is_not_sent() -> None:
    assert Planned(7, 0.0, 10, 60, None, said_of(TokenRequest(7, 0.0, {}), None)).told() == {"id": 7, "limit": 60}


@pytest.mark.parametrize(
    "nonsense",
    [
        {"priority": 1.5}, {"priority": "high"}, {"priority": True}, {"tenant": 3}, {"weight": 0}, {"weight": -1},
        {"weight": float("inf")}, {"predicted": float("nan")}, {"predicted": 0}, {"class": None},
        {"tier": 1}, [], "{",
    ],
)  # fmt: skip
def test_nonsense_is_left_out(nonsense: object) -> None:
    assert sent(nonsense) == {}
