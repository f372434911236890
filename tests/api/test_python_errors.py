"""What is wrong is said in the words of Python: `servetwin.Error` by argument and key, never an option."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from servetwin.core import Policy

import servetwin
from servetwin.errors import in_python


class Any(Policy):
    """Takes a parameter."""

    def __init__(self, max_batch: int = 8) -> None:
        self.max_batch = max_batch


CASES = {
    "unknown workload": ({"experiment": "dit-s2-256-rtx409"}, r"^unknown workload .*dit-s2-256-rtx4090"),
    "no file": ({"experiment": Path("nothing.yaml")}, r"^nothing.yaml: there is no such file"),
    "rate": ({"rate": -1}, r"^rate: workload\.arrivals\.rate: -1 does not fit \(right would be: greater than 0\)"),
    "several": ({"rate": [1, 2]}, r"^rate: \[1, 2\] is several values .*servetwin\.sweep"),
    "requests": ({"requests": 1.5}, r"^requests: workload\.requests: 1\.5 does not fit"),
    "seed": ({"seed": -1}, r"^seed: -1 does not fit"),
    "slo": ({"slo": {"seconds": -1}}, r"^slo: slo\.seconds: -1 does not fit"),
    "policy": ({"policy": "edff"}, r"^policy: policy\.name: unknown policy 'edff' \(right would be: edf"),
    "parameter": ({"policy": (Any, {"max_bach": 1})}, r"takes no parameter 'max_bach' \(right would be: max_batch\)"),
    "its type": ({"policy": (Any, {"max_batch": "x"})}, r"'x' does not fit parameter 'max_batch' .*int"),
    "function": ({"policy": lambda: 5}, r"^policy: .* gives 5 \(right would be: a new policy"),
    "variant": ({"variant": "none"}, r"^variant: unknown variant 'none'"),
    "deployment": ({"deployment": "none"}, r"^deployment: unknown deployment 'none' \(right would be: one of stages"),
    "key": ({"settings": {"slo.fator": 3}}, r"^slo\.fator: slo has no key 'fator' \(right would be: factor\)"),
    "dict": ({"experiment": {"extend": "x"}}, r"^experiment: "),
    "backend": (
        {"backend": "gpu"},
        r"^backend: there is no backend 'gpu' \(right would be: one of sim, real, vllm\)",
    ),
    "real": ({"real": {"devices": "cpu"}}, r"^real: only real runs take this \(right would be: backend=\"real\"\)"),
    "option": ({"backend": "real", "real": {"device": "cpu"}}, r"^real: there is no option 'device' .*devices"),
    "of vllm": ({"backend": "real", "real": {"url": "x"}}, r"^real: there is no option 'url'"),
    "sampler": ({"backend": "real", "real": {"sampler": "x"}}, r"^real\['sampler'\]: unknown sampler 'x'"),
    "trace": ({"trace": "nothing.csv"}, r"nothing\.csv: there is no such file"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_an_error_that_says_what_where_and_what_is_right(workload, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    given, message = CASES[case]
    with pytest.raises(servetwin.Error, match=message) as told:
        servetwin.run(**{"experiment": workload, "requests": 10, **given})
    error = told.value
    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    assert "--" not in str(error)
    assert str(error) == f"{f'{error.where}: ' if error.where else ''}{error.what}" + (
        f" (right would be: {error.right})" if error.right else ""
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: servetwin.run(5), "experiment: 5 is none"),
        (lambda w: servetwin.run(w, policy=5), "policy: 5 is no policy"),
        (lambda w: servetwin.run(w, policy=((Any, {}), {})), "has parameters already"),
        (lambda w: servetwin.run(w, ratee=5), "unexpected keyword argument 'ratee'"),
        (lambda w: servetwin.sweep([w, 5]), "experiment: .* is none"),
        (lambda w: servetwin.sweep(w, trace=["a", "b"]), "trace: a sweep has one"),
        (lambda w: servetwin.sweep(w, rate=[1], versus=(Any, {})), "versus: "),
        (lambda w: servetwin.compare(1, 2), "1 cannot be compared"),
    ],
)
def test_what_is_of_the_wrong_kind_is_a_type_error(workload, call, message):
    with pytest.raises(TypeError, match=message):
        call(workload)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: servetwin.sweep(w, rate=[]), r"^rate: there are no values"),
        (lambda w: servetwin.sweep(w, rate=[1, "x"]), r"^rate: workload\.arrivals\.rate: 'x' does not fit"),
        (lambda w: servetwin.sweep(w, rate=[1], until=5), r"^until: 5 is no width"),
        (lambda w: servetwin.sweep(w, rate=[1], requests=5, versus="edf"), r"^versus: no point of policy 'edf'"),
        (lambda w: servetwin.sweep(w, rate=[1, 2], cluster="x"), r"^cluster: 'x' is no cluster"),
        (lambda w: servetwin.sweep(w, policy=["edf", "fcfs"], requests=5).plot(), r"right would be: x with a column"),
        (
            lambda w: servetwin.sweep(w, rate=[1, 2], requests=5).plot(y="z"),
            r"^y: there is no column 'z' in the sweep",
        ),
        (lambda w: servetwin.sweep(w, rate=[1, 2], requests=5).save("x.txt"), r"^x\.txt: .*no kind of table"),
        (lambda w: servetwin.search(w, "rte"), r"^find: 'rte' cannot be sought \(right would be: rate\)"),
        (lambda w: servetwin.search(w, target=90), r"^target: 90 is no attainment .*a share between 0 and 1"),
        (lambda w: servetwin.search(w, target="p99_x_ms<=5"), r"^target: 'p99_x_ms<=5' is no limit"),
        (lambda w: servetwin.search(w, seeds=0), r"^seeds: "),
        (lambda w: servetwin.compare("a", "b"), r"^a: there is no such folder"),
        (lambda w: servetwin.compare("a", "b", target=90), r"^target: 90 is no attainment"),
        (lambda w: servetwin.load("nothing"), r"^nothing: there is no such folder"),
        (lambda w: servetwin.load("."), r"^\.: not a run folder"),
    ],
)
def test_errors_of_the_other_calls(workload, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(servetwin.Error, match=message) as told:
        call(workload)
    assert "--" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_objects_cannot_go_to_a_cluster(workload, monkeypatch):
    from contextlib import contextmanager

    from servetwin.experiments.sweeps import cluster

    @contextmanager
    def dask(address):
        yield lambda function, things: iter([function(i, thing) for i, thing in enumerate(things)])

    monkeypatch.setattr(cluster, "_dask", dask)
    assert len(servetwin.sweep(workload, rate=[1, 2], requests=5, cluster="tcp://there:8786")) == 2
    with pytest.raises(servetwin.Error, match=r"^cluster: the policy Fcfs is known to this process alone .*a file"):
        servetwin.sweep(workload, rate=[1, 2], requests=5, policy=Fcfs, cluster="tcp://there:8786")


class Fcfs(Any):
    def decide(self, view, now):
        return servetwin.Decision([*view.running, *view.waiting][: view.limit])


def messages() -> list[tuple[str, str]]:
    """Every text with an option in it that modules behind the public names hold, and where; what is formatted into a
    text is x."""
    found = []
    for package in ("experiments", "real", "profiles", "sim", "core"):
        home = Path(inspect.getfile(importlib.import_module(f"servetwin.{package}"))).parent
        for path in sorted(home.rglob("*.py")):
            tree = ast.parse(path.read_text())
            inner = {id(n) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for n in node.values}
            for node in ast.walk(tree):
                if id(node) in inner:
                    continue
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                elif isinstance(node, ast.JoinedStr):
                    text = "".join(str(v.value) if isinstance(v, ast.Constant) else "x" for v in node.values)
                else:
                    continue
                if re.search(r" --\w", f" {text}") and "\n" not in text:
                    found.append((text, f"{path.name}:{node.lineno}"))
    return found


#: Commands of other programs, and the declarations of the command line itself.
OTHERS = ("--query-gpu", "--format=csv", "--asynchronous/", "--cache/", "--policies/", "--bound/", "--open/")


def test_no_message_keeps_an_option_of_the_command_line():
    every = messages()
    assert len(every) > 50
    for text, where in every:
        if not any(other in text for other in OTHERS):
            bare = "".join(in_python(text).split("`")[::2])
            assert "--" not in bare, f"{where}: {text!r} is {in_python(text)!r}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--set rate", "rate"),
        ("--set rate=1.0 to begin with", "rate=1.0 to begin with"),
        ("--find rate", "find='rate'"),
        ("another --out", "another folder"),
        ("one taken here; or --any-device", "one taken here; or real={'any_device': True}"),
        ("--model opt-13b or --model opt-30b", "real={'model': 'opt-13b'} or real={'model': 'opt-30b'}"),
        ("--device", "real['devices']"),
        ("--weights /some/where", "real={'weights': '/some/where'}"),
        ("--backend vllm, for a language model alone", "backend='vllm', for a language model alone"),
        ("--target-metric", "target"),
        ("/my--rate/x--out.yaml", "/my--rate/x--out.yaml"),
        ("--x with a column", "x with a column"),
        ("a folder that `servetwin run --out` wrote", "a folder that `Result.save` wrote"),
        ("one made by `servetwin profile x --device y`", "one made by `servetwin profile x --device y`"),
    ],
)
def test_options_as_arguments(text, wanted):
    assert in_python(text) == wanted
