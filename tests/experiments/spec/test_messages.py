"""Messages name what the user wrote, and what would be right."""

from __future__ import annotations

import pytest

#: What is written, how the message begins, and what it says.
SAID = {
    "a policy by its option": (["--policy", "nix"], "--policy: unknown policy 'nix'", "or a file, my_policy.py"),
    "a policy by its key": (["--set", "policy=nix"], "--set policy: policy.name: unknown policy 'nix'", "or a file"),
    "a file by its option": (["--policy", "nix.py"], "--policy: ", "there is no such policy file"),
    "a rate by its option": (["--rate", "0"], "--rate: 0.0 does not fit", "greater than 0"),
    "a rate by its key": (
        ["--set", "rate=0"],
        "--set rate: workload.arrivals.rate: 0 does not fit",
        "greater than 0",
    ),
    "a rate by its key in full": (
        ["--set", "workload.arrivals.rate=0"],
        "--set workload.arrivals.rate: 0 does not fit",
        "greater than 0",
    ),
    "requests by their option": (["--requests", "0"], "--requests: 0 does not fit", "greater than or equal to 1"),
    "an slo by its option": (["--slo", "-1"], "--slo: -1.0 does not fit", "greater than 0"),
    "a variant": (["--set", "variant=3"], "--set variant: 3 is no variant", "a name"),
    "a key of another SLO": (
        ["--set", "slo.seconds=3"],
        "--set slo.seconds: slo has no key 'seconds'",
        "--set 'slo={seconds: 3}', or here factor",
    ),
    "nearly a key of another SLO": (["--set", "slo.second=3"], "--set slo.second", "--set 'slo={seconds: 3}'"),
    "a key of other arrivals": (
        ["--set", "workload.arrivals.file=t.csv"],
        "--set workload.arrivals.file: workload.arrivals has no key 'file'",
        "--set 'workload.arrivals={process: trace, file: t.csv}'",
    ),
    "a key of other steps": (
        ["--set", "workload.steps.denoise.steps=3"],
        "--set workload.steps.denoise.steps",
        "--set 'workload.steps.denoise={draw: constant, steps: 3}', or here draw, low, high",
    ),
    "a misspelt key of this SLO": (["--set", "slo.facter=3"], "--set slo.facter", "(right would be: factor)"),
    "an SLO over an SLO": (
        ["--slo", "2", "--set", "slo={seconds: 3}"],
        "--set slo={seconds: 3}: --slo 2.0 sets slo.factor as well",
        "one of the two",
    ),
    "a parameter of a policy": (
        ["--policy", "edf", "--set", "policy.params.max_batch=0"],
        "--set policy.params.max_batch: max_batch is 0",
        "1 or more",
    ),
    "a policy for language models": (["--policy", "vllm"], "policy: vllm is a policy for language models", "edf"),
}


@pytest.mark.parametrize("case", SAID.values(), ids=SAID)
def test_a_message_names_what_was_written(servetwin, toy, case):
    given, begins, right = case
    code, _, err = servetwin("run", toy, *given)
    assert code == 2
    assert err.startswith(f"servetwin: {begins}")
    assert right in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("where", ["workload.lengths.llm", "workload.classes.chat.lengths.llm"])
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("prefix", "{groups: 3}", "prefix.draw: key 'draw' is missing (right would be: draw: shared, or trace)"),
        ("prefix", "{draw: shred}", "prefix.draw: unknown draw 'shred' (right would be: shared)"),
        ("prefix", "{draw: shared}", "prefix.tokens: key 'tokens' is missing (right would be: tokens: ...)"),
        ("prefix", "{draw: trace, groups: 3}", "prefix.groups: unknown key 'groups' (right would be: one of draw)"),
        (
            "predict",
            "{draw: exact}",
            "predict.model: key 'model' is missing (right would be: model: exact, noisy, or",
        ),
        ("predict", "{model: noise}", "predict.model: unknown model 'noise' (right would be: noisy)"),
    ],
)
def test_a_draw_without_its_kind_is_told_the_kinds_of_it(servetwin, where, key, value, told):
    lengths = f"{{prompt: {{draw: constant, tokens: 3}}, output: {{draw: constant, tokens: 3}}, {key}: {value}}}"
    given = f"{where}.{key}={value}"
    if "classes" in where:
        given = f"workload.classes={{chat: {{share: 1, lengths: {{llm: {lengths}}}}}}}"
    code, out, err = servetwin("run", "opt-13b-a6000", "--policy", "vllm-v1", "--set", given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{where}.{told}" in err


def test_a_parameter_in_a_file_is_named_with_its_line(servetwin, toy):
    toy.write_text(toy.read_text().replace("{name: edf}", "{name: edf, params: {max_batch: 0}}"))
    code, _, err = servetwin("run", toy)
    assert code == 2
    line = next(n for n, text in enumerate(toy.read_text().splitlines(), 1) if "max_batch" in text)
    assert f"toy.yaml:{line}: policy.params.max_batch: max_batch is 0 (right would be: 1 or more)" in err


def test_what_is_said_to_be_right_is(servetwin, toy):
    assert servetwin("run", toy, "--set", "slo={seconds: 3}", "--policy", "edf")[0] == 0
    assert servetwin("run", toy, "--set", "workload.steps.denoise={draw: constant, steps: 3}")[0] == 0


def test_a_mapping_first_and_a_key_of_it_then_are_both_heard(servetwin, toy):
    both = ["--set", "slo={factor: 2.0}", "--set", "slo.base=alone"]
    code, _, err = servetwin("run", toy, *both)
    assert code == 2
    assert "slo has no key 'base'" not in err or "slo.base" in err
    code, _, err = servetwin("run", toy, *both[2:], *both[:2])
    assert code == 2
    assert "--set slo.base=alone sets slo.base as well" in err


def test_a_search_names_its_option_too(servetwin, toy):
    code, _, err = servetwin("search", toy, "--policy", "nix", "--jobs", 1)
    assert code == 2
    assert err.startswith("servetwin: --policy: unknown policy 'nix'")


@pytest.mark.parametrize("command", [["policies"], ["workloads"], ["profiles"]])
def test_tables_in_a_pipe_are_whole(servetwin, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = servetwin(*command)
    assert code == 0
    assert "…" not in out
    if command == ["workloads"]:
        assert "DiT-S/2, images of 256x256, RTX 4090 " in out


def test_a_search_s_table_in_a_pipe_is_whole(servetwin, toy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    long = toy.with_name("long.yaml")
    name = "a-name-that-is-quite-long-" * 6
    long.write_text(toy.read_text().replace("name: toy", f"name: {name}", 1))
    code, out, _ = servetwin("search", long, "--seeds", 2, "--requests", 40, "--longest", 80, "--jobs", 1)
    assert code == 0
    row = next(line for line in out.splitlines() if line.strip().startswith(name))
    assert row.split()[1] == "edf"
    assert "does not hold" not in out
    assert " met at " in out
    assert ", not met at " in out
