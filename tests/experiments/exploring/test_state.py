"""What is changed on the page: it is what the command and the file that the page shows say, and no more than is
offered."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.exploring import state as states
from servetwin.experiments.exploring.controls import Offer, offer_of
from servetwin.experiments.exploring.simulation import simulate
from servetwin.experiments.spec.loading import load

CHAT = "opt-13b-h100-async"
#: On the page: what is changed, of which experiment, over which options.
CHANGES: dict[str, tuple[str, list[tuple[str, Any]], dict[str, Any]]] = {
    "nothing": (CHAT, [], {}),
    "a rate": (CHAT, [], {"workload.arrivals.rate": 31.5}),
    "a policy and its parameter": (CHAT, [], {"policy.name": "sarathi", "policy.params.chunk": 300}),
    "a parameter left out": ("dit-s2-256-rtx4090", [], {"policy.name": "edf", "policy.params.max_batch": None}),
    "over options": (CHAT, [("rate", 9.0), ("seed", 4)], {"workload.arrivals.rate": 12, "slo.prefill": 6}),
    "over a mapping": (
        CHAT,
        [("slo", {"prefill": None, "decode": None, "limits": {"ttft_ms": 80.0}})],
        {"slo.limits.ttft_ms": 55.5},
    ),
    "another policy over one with parameters": (
        "dit-s2-256-rtx4090",
        [("policy", {"name": "neustream", "params": {"step_delta": 0.9}})],
        {"policy.name": "lsf", "policy.params.drop_late": False},
    ),
    "a deployment, and replicas": (
        "dit-s2-256-rtx4090",
        [("deployment", "whole"), ("policy", "clockwork")],
        {"deployment.replicas": 3, "deployment.devices.gpu0": "h100/dit-s2-256-graphs", "time.hold": True},
    ),
    "one of the deployments of the file": (
        "dit-s2-256-rtx4090",
        [("rate", 4.0)],
        {"deployment": "whole-clockwork", "policy.name": "clockwork", "deployment.replicas": 2},
    ),
    "an entry of a list": (CHAT, [("deployment.workers.0.limit", 8)], {"workload.requests": 30}),
}


@pytest.mark.parametrize("of", CHANGES)
def test_command_and_file_say_the_same_experiment(of: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, base, changed = CHANGES[of]
    chosen = states.overrides(base, states.State(changed=changed))
    experiment = load(source, list(chosen.items()))
    (tmp_path / "again.yaml").write_text(states.file_of(source, chosen, experiment))
    assert load(Path("again.yaml")).digest() == experiment.digest()
    words = shlex.split(states.command(source, chosen))
    assert words[:3] == ["servetwin", "run", source]
    assert load(source, _read(words[3:])).digest() == experiment.digest()


def _read(words: list[str]) -> list[tuple[str, Any]]:
    """The overrides that options of `servetwin run` mean."""
    from servetwin.experiments.cli.commands.options import overrides_of

    short, sets = {}, []
    for option, text in zip(words[::2], words[1::2], strict=True):
        if option == "--set":
            sets.append(text)
        else:
            short[option.removeprefix("--")] = text if option == "--policy" else json.loads(text)
    return [*short.items(), *overrides_of(sets, short)]


def test_the_command_gives_the_numbers_of_the_page(servetwin):
    changed = {"workload.requests": 80, "workload.arrivals.rate": 30, "policy.name": "sarathi"}
    chosen = states.overrides([], states.State(changed=changed))
    here = simulate(CHAT, chosen, "sarathi").run.summary
    code, printed, _ = servetwin(*shlex.split(states.command(CHAT, chosen))[1:], "--json")
    assert code == 0
    told = json.loads(printed)
    assert told.pop("validity")["validated"] is False  # of the experiment, not of its run
    assert told == here


def test_what_is_wrong_on_the_page_is_told_by_its_key():
    with pytest.raises(BadInput) as told:
        simulate("opt-13b-h100-async", {"workload.arrivals.rate": "two"}, "x")
    assert str(told.value).startswith("workload.arrivals.rate: 'two' does not fit")


def test_the_second_policy_serves_the_same_requests():
    state = states.State(
        changed={"workload.arrivals.rate": 30, "policy.params.lookahead": 2}, other={"policy.name": "edf-llm"}
    )
    first, second = (states.overrides([], state, other=other) for other in (False, True))
    assert first == {"workload.arrivals.rate": 30, "policy.params.lookahead": 2}
    assert second == {"workload.arrivals.rate": 30, "policy.name": "edf-llm"}
    one, two = (simulate(CHAT, {**own, "workload.requests": 40}, "x").run for own in (first, second))
    assert [r["arrival"] for r in sorted(one.requests, key=lambda r: r["id"])] == [
        r["arrival"] for r in sorted(two.requests, key=lambda r: r["id"])
    ]


@pytest.fixture(scope="module")
def offer() -> Offer:
    return offer_of(CHAT, [])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a policy's file": ({"changed": {"policy.name": "/tmp/mine.py"}}, "offers no policy '/tmp/mine.py'"),
    "a module": ({"changed": {"policy.name": "os:system"}}, "offers no policy 'os:system'"),
    "a second policy's file": ({"other": {"policy.name": "./mine.py"}}, "offers no policy './mine.py'"),
    "a profile's file": (
        {"changed": {"deployment.devices.gpu0": "/etc/passwd"}},
        "'/etc/passwd' is none of the list",
    ),
    "a trace": ({"changed": {"workload.trace": {"file": "/etc/passwd"}}}, "nothing called workload.trace"),
    "a router's file": ({"changed": {"deployment.router": "mine.py"}}, "nothing called deployment.router"),
    "another policy's parameter": ({"changed": {"policy.params.chunk": 5}}, "nothing called policy.params.chunk"),
    "no policy": ({"other": {}}, "names no policy"),
    "more of the second": ({"other": {"policy.name": "sarathi", "seed": 3}}, "nothing called seed"),
    "a list for a policy": ({"changed": {"policy.name": ["sarathi"]}}, "offers no policy"),
    "what fits not": ({"changed": {"policy.name": "srpt-llm"}}, "srpt-llm does not fit"),
    "nothing": ({"else": 1}, "else does not fit"),
    "no state": (None, "does not fit"),  # type: ignore[dict-item]
    "before the run": ({"look": -1}, "look does not fit"),
}


@pytest.mark.parametrize("of", BAD)
def test_what_the_page_does_not_offer_is_refused(of: str, offer: Offer):
    content, what = BAD[of]
    with pytest.raises(BadInput, match=what):
        states.check(states.state_of(content), offer)


def test_what_the_page_offers_is_not_refused(offer: Offer):
    changed = {
        "policy.name": "sarathi",
        "policy.params.chunk": 5,
        "seed": 3,
        "deployment.devices.gpu0": "h200/opt-13b-tp1",
    }
    states.check(states.state_of({"changed": changed, "other": {"policy.name": "vllm-v1"}, "look": 3}), offer)


@pytest.mark.parametrize("look", [10**400, -(10**400), -1, "x", None, float("inf")])
def test_a_time_that_is_none_is_bad_input(look: Any) -> None:
    with pytest.raises(BadInput, match="look"):
        states.state_of({"look": look})
