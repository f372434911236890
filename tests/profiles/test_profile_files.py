"""What a profile file may say, and what is said about one that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.core import BadInput
from servetwin.profiles import Cost, Profile, Quantiles, load
from servetwin.profiles.schema import FALLBACK, KINDS
from servetwin.profiles.tables.loading import check

Save = Callable[..., Path]
DELETE = object()


def put(content: Any, key: str, value: Any) -> None:
    """Set content[a][b][c] for the key "a.b.c" (~ is a dot in a name); DELETE takes it away."""
    *way, last = (step.replace("~", ".") for step in key.split("."))
    for step in way:
        content = content[step]
    if value is DELETE:
        del content[last]
    else:
        content[last] = value


def test_a_file_of_ones_own(small: dict[str, Any], save: Save) -> None:
    profile = load(save(small))
    assert profile.name == "mine/toy"
    assert profile.table("unet", "scheduler")(3) == 0.75
    assert (profile.is_loop("unet"), profile.is_loop("vae")) == (True, False)
    assert profile.data.modules["unet"].rows_per_request == 2
    assert profile.data.device.memory_gib == 16.0


TABLE = "modules.unet.tables.scheduler"
BAD = [
    ("modell", "x", "unknown key 'modell' (right would be: model)"),
    ("zzz", "x", "unknown key 'zzz' (right would be: one of schema_version, name, "),
    ("device.vendor", "x", "device: unknown key 'vendor' (right would be: one of name, kind, memory_gib, count)"),
    ("device.kind", "tpu", "device.kind: is 'tpu' (right would be: 'gpu' or 'cpu')"),
    ("device", "a GPU", "device: is 'a GPU' (right would be: a mapping with keys)"),
    ("model", DELETE, "key 'model' is missing"),
    ("model", 15, "model: is 15 (right would be: text)"),
    ("model", "", "model: is empty (right would be: some text)"),
    ("name", "My Model", "name: is 'My Model' (right would be: a name of lower-case letters"),
    ("schema_version", 2, "schema_version: is 2 (right would be: 1)"),
    ("image", [64], "image: has too few entries"),
    ("modules", {}, "a profile needs modules, or tokens"),
    ("modules.unet.loop", "yes", "modules.unet.loop: is 'yes' (right would be: true or false)"),
    ("modules.unet.tables", {}, "modules.unet.tables: has too few entries (right would be: 1 at least)"),
    ("modules.unet.tables.schedular", {}, "modules.unet.tables: unknown key 'schedular' (right would be: scheduler)"),
    (f"{TABLE}.secs", [], f"{TABLE}: unknown key 'secs' (right would be: seconds)"),
    (f"{TABLE}.seconds", DELETE, f"{TABLE}: key 'seconds' is missing"),
    (f"{TABLE}.seconds", [0.25, 0.5], f"{TABLE}: 3 batch sizes but 2 values"),
    (f"{TABLE}.seconds", [0.25, "fast", 1.0], f"{TABLE}.seconds[1]: is 'fast' (right would be: a number)"),
    (f"{TABLE}.seconds", [0.25, 0.0, 1.0], f"{TABLE}: the latency for batch size 2 is 0 s, not above 0"),
    (f"{TABLE}.seconds", [0.25, -0.5, 1.0], f"{TABLE}: the latency for batch size 2 is -0.5 s, not above 0"),
    (f"{TABLE}.seconds", [0.25, float("nan"), 1.0], f"{TABLE}.seconds[1]: is nan (right would be: a finite number)"),
    (f"{TABLE}.batch", [1, 2, 2], f"{TABLE}: batch size 2 stands twice"),
    (f"{TABLE}.batch", [1, 4, 2], f"{TABLE}: batch sizes must increase, but 2 follows 4"),
    (f"{TABLE}.batch", [1, 2.5, 4], f"{TABLE}.batch[1]: is 2.5 (right would be: a whole number)"),
    (f"{TABLE}.samples", [9], f"{TABLE}: 3 batch sizes but 1 entries in samples"),
    (f"{TABLE}.samples", [9, 9, -9], f"{TABLE}.samples[2]: is -9 (right would be: greater than or equal to 0)"),
    (f"{TABLE}.spread", {"p95": [1.0]}, f"{TABLE}: 3 batch sizes but 1 entries in spread.p95"),
    (f"{TABLE}.spread", {"p96": [1.0]}, f"{TABLE}.spread: unknown key 'p96' (right would be: p99)"),
    ("costs.unet~join_together.modules", ["unit"], "cost unet.join_together names unknown module 'unit'"),
    (
        "costs.unet~join_together.unit",
        "ms",
        "costs.unet.join_together.unit: is 'ms' (right would be: 'seconds' or 'ratio')",
    ),
    (
        "costs.unet~join_together.by_batch",
        DELETE,
        "costs.unet.join_together: a cost needs one of value, by_batch, line, quantiles, sessions",
    ),
    (
        "costs.unet~join_together.line",
        {"constant": 0, "per_request": 1},
        "costs.unet.join_together: by_batch and line contradict each other",
    ),
    (
        "costs.unet~join_together.by_batch.values",
        [0.5],
        "costs.unet.join_together.by_batch: 2 batch sizes but 1 values",
    ),
    ("costs.Join", {}, "costs.Join: is 'Join' (right would be: a name of lower-case letters"),
    (
        "costs.transport~client~unet.quantiles.p",
        [0.5],
        "costs.transport.client.unet.quantiles: 1 shares p but 3 values",
    ),
    (
        "costs.transport~client~unet.quantiles.p",
        [0, 0.5, 0.5],
        "costs.transport.client.unet.quantiles: the shares p must increase",
    ),
    (
        "costs.transport~client~unet.quantiles.values",
        [1, 3, 2],
        "costs.transport.client.unet.quantiles: the values of quantiles must not ",
    ),
    (
        "costs.transport~client~unet.quantiles",
        {"p": [0], "values": [1]},
        "costs.transport.client.unet.quantiles: a distribution needs two ",
    ),
    (
        "costs.whole~session.sessions",
        [],
        "costs.whole.session.sessions: has too few entries (right would be: 1 at least)",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(BAD)])
def test_a_bad_file_gives_one_line(key: str, value: Any, message: str, small: dict[str, Any], save: Save) -> None:
    put(small, key, value)
    path = save(small)
    with pytest.raises(BadInput) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_key_written_wrongly_is_not_called_missing(small: dict[str, Any], save: Save) -> None:
    small["modell"] = small.pop("model")
    with pytest.raises(BadInput, match=r"unknown key 'modell'; and 1 more \(right would be: model\)$"):
        load(save(small))


def test_more_than_one_fault_is_counted(small: dict[str, Any], save: Save) -> None:
    del small["model"], small["precision"]
    with pytest.raises(BadInput, match=r"key 'model' is missing; and 1 more$"):
        load(save(small))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing (right would be: keys: schema_version, name, "),
        ("- 1\n- 2\n", "holds [1, 2] (right would be: keys: "),
        ("name: x\nmodel: y\nname: z\n", "line 3: key 'name' stands twice"),
        ("? [name, model]\n: x\n", "line 1: found unhashable key"),
        ("name: [1, 2\n", "line 2: did not find expected"),
        ("name: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_profile(text: str, message: str, save: Save) -> None:
    path = save(text)
    with pytest.raises(BadInput) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml: cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BadInput, match=r"binary\.yaml: "):
        load(tmp_path / "binary.yaml")


def test_a_number_may_be_written_with_an_exponent(small: dict[str, Any], save: Save) -> None:
    small["modules"]["vae"]["tables"]["scheduler"]["seconds"] = ["NUMBER"]
    path = save(small)
    path.write_text(path.read_text().replace("NUMBER", "125e-3"))
    assert load(path).table("vae")(1) == 0.125


def test_costs_in_all_their_forms(small: dict[str, Any], save: Save) -> None:
    profile = load(save(small))
    assert set(profile.costs) == {"transport.client.unet", "unet.join_together", "whole.session", "last_stage"}

    assert profile.seconds("transport.client.unet") == 0.0625
    assert [profile.cost("transport.client.unet").quantile(p) for p in (0, 0.25, 0.5, 0.75, 1)] == [
        0.03125,
        0.046875,
        0.0625,
        0.15625,
        0.25,
    ]

    assert profile.cost_table("unet.join_together")(2) == 0.0
    assert profile.cost("unet.join_together").upto(3)[1:] == [0.5, 0.0, -0.5]
    assert profile.cost("unet.join_together").upto(4, hold=True)[4] == -0.5
    with pytest.raises(BadInput, match=r"mine/toy unet.join_together: no value for a batch of 4"):
        profile.cost_table("unet.join_together")(4)

    assert profile.cost("last_stage").upto(3)[1:] == [0.75, 1.0, 1.25]
    assert profile.cost("transport.client.unet").upto(2)[1:] == [0.0625, 0.0625]

    assert profile.seconds("whole.session") == 1.0
    assert profile.seconds("whole.session", when=datetime(2024, 4, 28, 16)) == 1.0625
    assert profile.seconds("whole.session", when=datetime(2024, 4, 28, 20)) == 1.0
    with pytest.raises(BadInput, match="has a time zone"):
        profile.seconds("whole.session", when=datetime(2024, 4, 28, 16, tzinfo=UTC))

    assert profile.seconds("unet.join", 0.0) == 0.0
    with pytest.raises(BadInput, match=r"^mine/toy: no cost 'unet.join' \(right would be: .*join"):
        profile.seconds("unet.join")


@pytest.mark.parametrize(
    ("cost", "ask", "forms"),
    [
        ("unet.join_together", Cost.scalar, "by_batch"),
        ("transport.client.unet", Cost.table, "value or quantiles"),
        ("whole.session", lambda cost: cost.quantile(0.5), "value or sessions"),
    ],
)
def test_a_form_that_a_cost_does_not_have(
    cost: str, ask: Callable[[Cost], object], forms: str, small: dict[str, Any], save: Save
) -> None:
    with pytest.raises(BadInput, match=rf"has no \w+ \(right would be: {forms}\)$"):
        ask(load(save(small)).cost(cost))


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [
        ("2024-04-28 19:59", "2024-04-29 00:00", "costs.whole.session: two sessions overlap"),
        ("2024-04-29 00:00", "2024-04-29 00:00", "since must come before until"),
        ("2024-04-29 00:00Z", "2024-04-30 00:00Z", "the times of a session have no time zone"),
    ],
)
def test_sessions_that_cannot_be(since: str, until: str, message: str, small: dict[str, Any], save: Save) -> None:
    small["costs"]["whole.session"]["sessions"].append({"since": since, "until": until, "value": 1})
    with pytest.raises(BadInput, match=message):
        load(save(small))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-1e3, 1e3)), min_size=2, unique_by=lambda x: x[0]), st.floats(0, 1)
)
def test_quantiles_are_monotone_and_exact(points: list[tuple[float, float]], share: float) -> None:
    shares, values = sorted(p for p, _ in points), sorted(v for _, v in points)
    cost = Cost.model_validate(
        {
            "meaning": "x",
            "unit": "seconds",
            "quantiles": Quantiles(p=tuple(shares), values=tuple(values)),
            "how": "x",
            "source": {"file": "x"},
        }
    )
    assert [cost.quantile(p) for p in shares] == values
    assert values[0] <= cost.quantile(share) <= values[-1]
    assert cost.quantile(share / 2) <= cost.quantile(share)


MORE = """
schema_version: 1
profile: mine/toy
description: calibrated later
costs:
  unet.join: {meaning: a request joins, unit: seconds, value: 0.5, how: fitted, source: {file: notes}}
"""


def test_costs_calibrated_later_lie_in_a_file_beside(small: dict[str, Any], save: Save) -> None:
    path = save(small)
    before = load(path)
    beside = save(MORE, "toy.costs.yaml")
    after = load(path)
    assert after.seconds("unet.join") == 0.5
    assert after.seconds("transport.client.unet") == before.seconds("transport.client.unet")
    assert "unet.join" not in before.costs
    assert after.digest != before.digest
    beside.unlink()
    assert load(path).digest == before.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("profile: mine/toy", "profile: other", r"profile: is for profile 'other' \(right would be: mine/toy\)"),
        (
            "unet.join:",
            "unet.join_together:",
            r"costs.unet.join_together: stands in the profile already \(right would be: another name\)",
        ),
        ("value:", "modules: [clip], value:", r"costs.unet.join.modules: unknown module 'clip'"),
        ("value:", "valeu:", r"costs.unet.join: unknown key 'valeu' \(right would be: value\)"),
    ],
)
def test_costs_beside_that_do_not_fit(old: str, new: str, message: str, small: dict[str, Any], save: Save) -> None:
    path = save(small)
    beside = save(MORE.replace(old, new), "toy.costs.yaml")
    with pytest.raises(BadInput, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{beside}: ")


def test_the_digest_is_of_the_content_and_not_of_the_layout(small: dict[str, Any], save: Save) -> None:
    first = load(save(small, "a.yaml"))
    again = load(save("# a comment\n" + save(small, "b.yaml").read_text() + "\n\n", "b.yaml"))
    turned = load(save(dict(reversed(small.items())), "c.yaml"))
    assert first.digest == again.digest == turned.digest
    assert first == again
    assert hash(first) == hash(again)

    small["modules"]["unet"]["tables"]["scheduler"]["seconds"][2] = 1.0000000000000002
    assert load(save(small, "d.yaml")).digest != first.digest


def test_a_file_is_read_again_when_it_has_changed(small: dict[str, Any], save: Save) -> None:
    path = save(small)
    first = load(path)
    assert load(path) is first
    small["modules"]["vae"]["tables"]["scheduler"]["seconds"] = [0.0625]
    save(small)
    assert load(path).table("vae")(1) == 0.0625
    assert first.table("vae")(1) == 0.125


def test_nothing_can_be_set_afterwards(small: dict[str, Any]) -> None:
    from servetwin.profiles import ProfileFile

    data = check(small, ProfileFile, where="here")
    with pytest.raises(ValueError, match="frozen"):
        data.name = "other"
    assert Profile(data).name == "mine/toy"


def test_every_kind_of_table_is_explained() -> None:
    for kind, others in FALLBACK.items():
        assert {kind, *others} <= KINDS.keys()
