"""What a run comes to on hosts of other speeds, and whether a measured run's own host explains what was measured."""

from __future__ import annotations

import json

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.registry.catalog import recording_of
from servetwin.experiments.spec.keys.host_factors import HostFactors, of_run
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay import host_band
from servetwin.experiments.validation.replay.chat import gap, read, simulate
from servetwin.experiments.validation.replay.folder import find
from servetwin.experiments.validation.replay.run_steps import host_factors, launches_of, steps_of
from servetwin.experiments.validation.score import score
from servetwin.profiles import load as profile_of
from servetwin.profiles.tables.costs import BEGINS, LAUNCH, LAUNCH_PIECES

#: Chats of which some are late on the profile's host and many on a slow one.
CHAT = [
    ("deployment.devices.gpu0", "h200-full/llama-3.1-8b"),
    ("deployment.workers.0.limit", 256),
    ("requests", 250),
    ("rate", 40.0),
    ("policy", "vllm-v1"),
    ("slo", {"prefill": None, "decode": None, "limits": {"ttft_ms": 200, "tpot_ms": 8}}),
]


@pytest.fixture(scope="module")
def chat():
    return load("opt-13b-h100-async", CHAT)


def test_only_launches_get_longer():
    """Each by the factor of how it is launched; what sequences cost that leave or come back is in the factors."""
    profile = profile_of("h200-full/llama-3.1-8b")
    from servetwin.experiments.assembly.llm_workers import host_ahead, slowed

    usual = host_ahead(profile)
    time = load("opt-13b-h100-async", [("time.host", {"graph": 1.5, "pieces": 2.0, "kernels": 3.0})]).time
    host = slowed(usual, profile, time)
    for name in ("begins", "begins_each", "each"):
        assert getattr(host, name) == 1.5 * getattr(usual, name) > 0.0
    assert (host.pieces, host.launch) == (2.0 * usual.pieces, 3.0 * usual.launch)
    assert (host.left, host.back, host.back_token) == (usual.left, usual.back, usual.back_token)
    assert (host.intake, host.between(8)) == (usual.intake, usual.between(8))


def test_a_band_holds_the_prediction_and_slower_hosts(chat):
    one, slow = host_band.band(chat, [1.0, 2.5])
    assert one.seeds == slow.seeds == host_band.SEEDS
    assert one.latencies["mean_tpot_ms"] < slow.latencies["mean_tpot_ms"]
    assert one.attainment > slow.attainment + 0.03
    assert "hangs on how fast the host is" in host_band.verdict([one, slow])
    assert "does not hang" in host_band.verdict([one, one])
    # On the profile's host it is what the experiment says, with the noise of its seeds.
    plain = load(chat.as_dict(), [("time.noise", False)])
    (alone,) = host_band.band(plain, [1.0])
    assert alone.seeds == 1
    assert alone.attainment == build.run(plain).as_dict()["attainment"]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("opt-13b-h100", [], "is synchronous: its steps have their launches in them"),
        ("opt-13b-h100-async", [("time.costs", False)], "without costs launches take no time"),
    ],
)
def test_where_launches_are_no_part_of_a_step_they_are_not_lengthened(name, changes, says):
    with pytest.raises(BadInput, match=says):
        build.build(host_band.on_host(load(name, changes), 1.3))


def test_images_have_no_such_host():
    with pytest.raises(BadInput, match="launches are those of engines of LLM modules"):
        load("dit-s2-256-rtx4090", [("time.host", 1.3)])


@pytest.mark.parametrize("text", ["fast", "0", "-1", "nan", "1,,2", "101", ""])
def test_what_is_no_host_is_refused(text):
    with pytest.raises(BadInput, match="--host-factor"):
        host_band.hosts_of(text)


def test_a_real_run_stands_for_its_host(tmp_path):
    told = {BEGINS(): 1.2, LAUNCH_PIECES(): 1.3}
    (tmp_path / "real.json").write_text(json.dumps({"host": {"profile": "any", "over_profile": told}}))
    number, run = host_band.hosts_of(f"1.0,{tmp_path}")
    assert number == 1.0
    assert run == HostFactors(graph=1.2, pieces=1.3, kernels=1.2) == of_run(told)
    assert host_band.told(run) == "1.20 / 1.30 / 1.20"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"host": null}',
        '{"host": {"profile": "a", "over_profile": {}}}',
        '{"host": {"profile": "a", "over_profile": {"step.begins": "slow"}}}',
    ],
)
def test_a_folder_that_tells_no_host_is_refused(tmp_path, content):
    (tmp_path / "real.json").write_text(content)
    assert host_band.line_of(tmp_path) is None
    with pytest.raises(BadInput, match="told its host"):
        host_band.hosts_of(str(tmp_path))


@pytest.mark.checkout
def test_a_recorded_run_is_explained_by_its_host():
    """`vtc`: 64 points off by the profile's host, which became 1.4 times as slow, and some 5 by its own."""
    file = recording_of("h200-full/runs-llama-3.1-8b.json.gz")
    name, runs = read(file)
    (run,) = (run for run in runs if run.policy == "vtc")
    steps = steps_of(launches_of(file), [run.name])
    factors = host_factors(steps[run.name], steps[f"{run.name} schedule"], profile_of(name))
    assert gap(run, simulate(run, name, 1)) > 50.0
    assert abs(gap(run, simulate(run, name, 1, of_run(factors)))) < 8.0


def test_score_says_whether_the_host_explains_a_run(chat, tmp_path):
    """Of a run that is taken for a real one, on a host whose speed it tells."""
    slow = HostFactors(graph=2.5, pieces=2.5, kernels=2.5)
    folder = tmp_path / "measured"
    build.run(host_band.on_host(chat, slow), folder)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["experiment"]["time"]["host"]
    (folder / "meta.json").write_text(json.dumps({**meta, "kind": "real"}))
    host = {"profile": "h200-full/llama-3.1-8b", "over_profile": {BEGINS(): 2.5, LAUNCH_PIECES(): 2.5, LAUNCH(): 2.5}}
    (folder / "real.json").write_text(json.dumps({"host": host}))
    (scored,) = score(folder, tmp_path / "out.csv", seeds=2, jobs=1, as_they_are=True)
    (note,) = (note for note in scored.notes if "its host took" in note)
    assert "2.50 / 2.50 / 2.50 times the profile's" in note
    assert note.endswith("as measured: the host explains it")
    host["profile"] = "another"  # beside which the factors say nothing here
    (folder / "real.json").write_text(json.dumps({"host": host}))
    (found,) = find(folder, as_they_are=True)
    assert host_band.by_own_host(found, {"met": 1}, 1, 1) == []
