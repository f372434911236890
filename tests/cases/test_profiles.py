"""Profiles: the cases, and variants of them, by the right value worked out here.

07  ``hold: true`` in shipped workloads took a decode step of 1,024 for one of 256
14  shipped decode surfaces fell with the batch: 128 sequences were quicker than 112
18  a misspelt cost was loaded, and not read
"""

from pathlib import Path
from typing import Any

import pytest
import servetwin.profiles
import yaml
from by_command import call, refused, sets, steps, summary, toy
from servetwin.core import BadInput
from servetwin.experiments.registry.catalog import workload_names
from servetwin.experiments.spec.loading import load as experiment
from servetwin.profiles import load

import servetwin

DATA = Path(servetwin.profiles.__file__).parent / "data"
SHIPPED = sorted(f"{path.parent.name}/{path.stem}" for path in DATA.glob("*/*.yaml"))
TOKENS = [name for name in SHIPPED if "tokens:" in (DATA / f"{name}.yaml").read_text()]

# -- 07: beyond what was measured ---------------------------------------------------------------------------------

BUSY = ("opt-13b-h100-async", "--policy", "vllm-v1", "--rate", "1000")
LONG = {"workload__lengths__llm__output__low": 500, "workload__lengths__llm__output__high": 500}


@pytest.mark.parametrize("limit", [300, 512, 1024])
def test_07_a_batch_that_nobody_measured_is_refused(limit) -> None:
    more = {**LONG, "deployment__workers__0__limit": limit, "deployment__workers__0__engine__blocks": 200000}
    refused("run", *BUSY, "--requests", 600, *sets(**more), says=("no value for decoding a batch of", "256"))


def test_07_no_shipped_workload_holds() -> None:
    for name in workload_names():
        assert not experiment(name).time.hold, name


#: Toys that know 64 sequences, 4,096 tokens of a prompt and batches of 8, and what goes beyond: how far it comes.
BEYOND = {
    "07 sequences": ("llm", [(1.0, 100, 20)] * 100, {"limit": 128}, "a batch of 100", "up to 100 sequences"),
    "07 a prompt": ("llm", [(1.0, 3000, 20)] * 3, {"engine": {"max_batched_tokens": 9000}}, "9000 tokens", "9000"),
    "07 context": ("deep", [(1.0, 1500, 20)] * 50, {}, "tokens of context", "context"),
    "07 a batch of a loop": ("steps", [(1.0, 20)] * 20, {"limit": 16}, "a batch of", "up to 16 batch size"),
}


@pytest.mark.parametrize("case", BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("replicas", [1, 2])
def test_07_refused_or_counted(case, replicas, here) -> None:
    kind, rows, worker, refusal, told = case
    rows = rows * replicas
    path = steps(here, rows) if kind == "steps" else toy(here, rows)
    if kind == "deep":
        (here / "toy.yaml").write_text(
            (here / "toy.yaml").read_text().replace("65536", "30000").replace("1000", "9000")
        )
    given = {f"deployment__workers__0__{key}": value for key, value in worker.items()}
    given["deployment__replicas"] = replicas
    refused("run", path, *sets(**given), says=("no value for", refusal))
    code, out, err = call("run", path, *sets(time__hold=True, **given))
    assert code == 0, err
    assert f"beyond what was measured: {''}" in out
    assert told in out
    found = summary(path, *sets(time__hold=True, **given))
    assert sum(held["steps"] for held in found["held"]) > 0


def test_07_in_python_and_in_a_table(here) -> None:
    steps(here, [(1.0, 20)] * 20)
    with pytest.raises(servetwin.Error, match="no value for a batch of 9"):
        servetwin.run("steps.yaml", settings={"deployment.workers.0.limit": 16})
    (here / "s.yaml").write_text(
        "extends: steps.yaml\nset: {time.hold: true}\ngrid: {deployment.workers.0.limit: [8, 16]}\n"
    )
    code, _, err = call("sweep", "s.yaml", "--out", "rows.csv")
    assert code == 0, err
    header, *lines = [line.split(",") for line in (here / "rows.csv").read_text().splitlines()]
    beyond = [int(line[header.index("steps_beyond_measured")]) for line in lines]
    # 20 requests of 20 iterations: 16 of them at once, then 4, within what is known.
    assert beyond[0] == 0
    assert beyond[1] in (20, 25)


# -- 14: more sequences take longer -------------------------------------------------------------------------------


def longest_context(profile: str) -> int:
    data = load(profile).token_data
    assert data is not None
    return data.kv.blocks * 16


@pytest.mark.parametrize("hold", [False, True], ids=["14 measured", "14 held"])
@pytest.mark.parametrize("profile", TOKENS)
def test_14_no_shipped_profile_decodes_more_sequences_faster(profile, hold) -> None:
    """Every batch beside all smaller ones, at contexts of every size that the memory holds; less the noise of what
    was measured, 5 % at most."""
    for kind in ("measured", "scheduler"):
        table = load(profile).tokens(kind, "measured", "scheduler", hold=hold)
        most, noise = longest_context(profile), table.surface.noise if table.model.surface is not None else 0.0
        assert noise <= 0.05
        for each in (1, 17, 40, 130, 300, 401, 777, 1500, 2000):
            before, at = 0.0, 0  # the longest so far
            for batch in range(1, table.largest_batch + 1):
                if batch * each > min(most, table.pieces(batch).last):
                    break  # held, and counted, from here on
                try:
                    seconds = table.decode(batch, batch * each)
                except BadInput:  # nobody measured it, and nobody holds
                    break
                assert seconds >= before * (1 - noise - 1e-9), (kind, at, batch, each)
                if seconds > before:
                    before, at = seconds, batch


def test_14_case_128_lies_between_its_neighbours() -> None:
    table = load("h100-knees/opt-13b-tp1").tokens("measured", hold=True)
    low, at, high = (table.decode(batch, batch * 300) for batch in (112, 128, 160))
    assert low < at < high
    assert at == pytest.approx(low + (high - low) * 16 / 48, rel=0.05)


def test_14_throughput_does_not_leap_with_the_limit() -> None:
    """From 112 to 128 sequences: at most the 14 % that there are more."""
    said = {"workload__lengths__llm__prompt": {"draw": "constant", "tokens": 100},
            "workload__lengths__llm__output": {"draw": "constant", "tokens": 300}}  # fmt: skip
    rates = []
    for limit in (96, 112, 128):
        found = summary(*BUSY, "--requests", 500, *sets(**said, deployment__workers__0__limit=limit))
        rates.append(found["total_output_tokens"] / found["duration"])
    assert rates[0] < rates[1] < rates[2] < rates[1] * 128 / 112


FALLING = {
    "14 a csv profile": (0.02, 0.01, 0.03, 0.04),
    "14 by a sixth, from 2 to 4": (0.02, 0.024, 0.02, 0.04),
    "14 at its end": (0.02, 0.03, 0.04, 0.03),
}


@pytest.mark.parametrize("case", FALLING.values(), ids=FALLING)
def test_14_a_profile_of_ones_own_that_falls_is_refused(case, here) -> None:
    steps(here, [(1.0, 20)] * 5)
    rows = "".join(f"loop,{batch},{seconds}\n" for batch, seconds in zip((1, 2, 4, 8), case, strict=True))
    (here / "steps.csv").write_text("module,batch,seconds\n" + rows)
    for command in (("profiles", "steps.csv"), ("run", "steps.yaml"), ("check", "fcfs", "steps.yaml")):
        refused(*command, says=("loop: a batch of", "times that do not fall as the batch grows"))


# -- 18: names of costs -------------------------------------------------------------------------------------------

STEPS_PROFILE, TOKEN_PROFILE = "h100-quiet/sd15-512-graphs", "h100-long/opt-13b-tp1-0"
MISSPELT = {
    "18 case: jion": (STEPS_PROFILE, "unet.join", "unet.jion", "unet.join"),
    "18 case: besides": (STEPS_PROFILE, "unet.device_beside.vae", "unet.device_besides.vae", "unet.device_beside"),
    "18 capitals": (STEPS_PROFILE, "unet.leave", "unet.Leave", "lower-case"),
    "18 a space": (STEPS_PROFILE, "unet.cold", "unet.cold ", "lower-case"),
    "18 another module": (STEPS_PROFILE, "unet.pause", "unett.pause", "unet.pause"),
    "18 another neighbour": (STEPS_PROFILE, "vae.device_beside.clip", "vae.device_beside.clyp", "clip"),
    "18 a hyphen": (STEPS_PROFILE, "transport.client.clip", "transport-client.clip", "transport.client"),
    "18 no number": (STEPS_PROFILE, "unet.device_beside.vae.2", "unet.device_beside.vae.two", "vae"),
    "18 another policy": (STEPS_PROFILE, "unet.gap.neustream", "unet.gap.neustraem", "neustream"),
    "18 of a language model": (TOKEN_PROFILE, "step.begins", "step.begin", "step.begins"),
    "18 of its host": (TOKEN_PROFILE, "host.stall", "host.stal", "host.stall"),
    "18 its load": (TOKEN_PROFILE, "prefill.recent_load", "prefil.recent_load", "prefill.recent_load"),
}


def content_of(profile: str) -> Any:
    return yaml.load((DATA / f"{profile}.yaml").read_text(), yaml.CSafeLoader)


def write_mine(here: Path, content: object) -> None:
    (here / "mine.yaml").write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))


@pytest.mark.parametrize("case", MISSPELT.values(), ids=MISSPELT)
def test_18_a_misspelt_cost_is_refused_with_the_nearest(case, here) -> None:
    source, name, wrong, near = case
    content = content_of(source)
    costs = content["costs"]
    assert name in costs
    content["costs"] = {wrong if key == name else key: value for key, value in costs.items()}
    write_mine(here, content)
    workload = "opt-13b-h100-async" if source == TOKEN_PROFILE else "sd15-512-h100-graphs"
    used = [
        "--policy",
        "vllm-v1" if source == TOKEN_PROFILE else "edf",
        *sets(deployment__devices={"gpu0": "mine.yaml"}),
    ]
    (here / "s.yaml").write_text(f"extends: {workload}\nset: {{deployment.devices: {{gpu0: mine.yaml}}}}\n"
                                 "grid: {rate: [1, 2]}\n")  # fmt: skip
    for command in (
        ("run", workload, "--requests", 5, *used),
        ("profiles", "mine.yaml"),
        ("sweep", "s.yaml", "--out", "rows.csv"),
        ("check", "vllm-v1" if source == TOKEN_PROFILE else "edf", "s2.yaml"),
    ):
        (here / "s2.yaml").write_text(f"extends: {workload}\ndeployment: {{devices: {{gpu0: mine.yaml}}}}\n")
        code, out, err = call(*command)
        assert (code, out) == (2, ""), (command, out, err)
        assert err.count("\n") == 1, err
        assert wrong.strip() in err, err
        assert near in err.partition("right would be")[2], err


def test_18_in_python(here) -> None:
    content = content_of(STEPS_PROFILE)
    content["costs"]["unet.jion"] = content["costs"].pop("unet.join")
    write_mine(here, content)
    with pytest.raises(servetwin.Error, match=r"unet\.jion.*unet\.join"):
        servetwin.run("sd15-512-h100-graphs", settings={"deployment.devices": {"gpu0": "mine.yaml"}})


WRONG_VALUES = {
    "18 a text": {"value": "fast"},
    "18 a list for a number": {"value": [1.0, 2.0]},
    "18 another unit": {"unit": "minutes"},
    "18 no number": {"value": float("nan")},
    "18 for ever": {"value": float("inf")},
}


def test_18_a_value_that_nothing_would_read_is_refused(here) -> None:
    content = content_of(STEPS_PROFILE)
    content["costs"]["unet.device_beside.vae"]["value"] /= 4
    write_mine(here, content)
    refused("profiles", "mine.yaml", says=("unet.device_beside.vae", "outside of by_batch's 0.587859 to 0.727546"))


@pytest.mark.parametrize("change", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_18_a_cost_is_what_the_registry_says(change, here) -> None:
    content = content_of(STEPS_PROFILE)
    content["costs"]["unet.join"] = {**content["costs"]["unet.join"], **change}
    write_mine(here, content)
    refused("profiles", "mine.yaml", says=("unet.join",))


@pytest.mark.parametrize("name", ["unet.join", "unet.device_beside.vae", "transport.client.clip"])
def test_18_what_is_read_changes_the_run(name, here) -> None:
    """A cost that is spelt right is read: at a quarter of it, requests take another time."""
    found = []
    for factor in (1, 4):
        content = content_of(STEPS_PROFILE)
        cost = content["costs"][name]
        cost["value"] /= factor  # a time, or a ratio of speeds
        if "by_batch" in cost:
            cost["by_batch"]["values"] = [value / factor for value in cost["by_batch"]["values"]]
        write_mine(here, content)
        given = sets(deployment__devices={"gpu0": "mine.yaml"}, time__noise=False)
        found.append(summary("sd15-512-h100-graphs", "--policy", "edf", "--rate", 2, "--requests", 40, *given))
    assert abs(found[1]["mean_e2el_ms"] / found[0]["mean_e2el_ms"] - 1.0) > 1e-6
