"""`servetwin.run`: the same run as the command line's, with policies that are Python objects."""

from __future__ import annotations

import functools
import gc
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from servetwin.core import Decision, Policy
from servetwin.experiments.assembly.build import run as engine
from servetwin.experiments.spec.loading import load
from servetwin.policies.diffusion.edf import EDF

import servetwin


class Shortest(Policy):
    """Least work first."""

    def __init__(self, max_batch: int = 8, keys: dict[str, int] | None = None) -> None:
        self.max_batch, self.keys = max_batch, keys

    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda task: (task.left, task.id))
        return Decision(tasks[: min(self.max_batch, view.limit)])


class Faulty(Policy):
    def decide(self, view, now):
        raise LookupError("no such table")


def plain(result: servetwin.Result) -> dict[str, object]:
    return json.loads(json.dumps(result.summary))


def test_a_run_is_that_of_the_engine(workload):
    result = servetwin.run(workload, rate=4, cv=1.5, slo=2.5, requests=60, seed=3, policy="clockwork")
    chosen = [("policy", "clockwork"), ("rate", 4), ("cv", 1.5), ("slo", 2.5), ("requests", 60), ("seed", 3)]
    experiment = load(workload, chosen)
    assert result.experiment == experiment.as_dict()
    assert plain(result) == json.loads(json.dumps(engine(experiment).as_dict()))
    assert result.attainment == result.summary["met"] / 60
    assert result.met + result.summary["late"] == result.finished
    assert result.goodput == result.met / result.summary["duration"]
    assert result.policy == "clockwork"
    assert "60 requests" in repr(result)


def test_settings_variants_and_deployments_are_as_on_the_command_line(workload):
    settings = {"policy.params.step_delta": 1.1, "seed": np.int64(7)}
    result = servetwin.run(workload, requests=20, deployment="whole", settings=settings)
    assert result.experiment["deployment"]["name"] == "whole"
    assert result.experiment["policy"]["params"]["step_delta"] == 1.1
    assert result.experiment["seed"] == 7
    other = servetwin.run(workload, requests=np.int64(20), rate=np.float64(3.0), variant="neustream-ae")
    assert (
        other.experiment == load(workload, [("variant", "neustream-ae"), ("requests", 20), ("rate", 3.0)]).as_dict()
    )


def test_an_experiment_is_a_name_a_file_or_a_dict(workload, tmp_path):
    content = {"extends": workload, "workload": {"requests": 20}}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(content))
    wanted = plain(servetwin.run(workload, requests=20))
    for given in (content, file, str(file)):
        assert plain(servetwin.run(given)) == wanted
    full = servetwin.run(workload, requests=20).experiment
    assert plain(servetwin.run(full)) == wanted


def test_records_are_tables_that_agree_with_the_summary(workload):
    result = servetwin.run(workload, rate=4, requests=80)
    requests, summary = result.requests, result.summary
    assert len(requests) == 80
    assert requests["id"] == list(range(80))
    outcomes = requests["outcome"]
    assert all(outcomes.count(o) == summary[o] for o in ("met", "late", "dropped", "failed"))
    latencies = [x for x in requests["latency"] if x is not None]
    assert fmean(latencies) * 1e3 == pytest.approx(summary["mean_e2el_ms"], rel=1e-12)
    assert all((row["finished"] is None) == (row["reason"] is not None) for row in requests)
    in_time = [row["finished"] is not None and row["finished"] <= row["deadline"] for row in requests]
    assert sum(in_time) == result.met
    for worker, told in summary["workers"].items():
        own = [row for row in result.batches if row["worker"] == worker]
        counts = [row["iterations"] * len(row.get("ends") or [0]) for row in own]
        assert sum(counts) == told["iterations"]
        assert max(row["size"] for row in own) == told["max_batch_size"]
    stays = [row for row in result.stages if row["stage"] == "dit" and row["finished"] is not None]
    steps = dict(zip(requests["id"], requests["steps.dit"], strict=True))
    assert all(row["iterations"] == steps[row["request"]] for row in stays)


def test_latencies_of_a_language_model_agree_with_the_summary():
    result = servetwin.run("opt-13b-a6000", rate=2, policy="vllm", requests=150)
    (told,) = result.summary["llm"].values()
    done = [row for row in result.requests if row["finished"] is not None]
    assert fmean(row["ttft"] for row in done) * 1e3 == pytest.approx(told["mean_ttft_ms"], rel=1e-12)
    gaps = [row["tpot"] for row in done if row["tpot"] is not None]
    assert fmean(gaps) * 1e3 == pytest.approx(told["mean_tpot_ms"], rel=1e-12)
    sizes = [row["size"] for row in result.batches]
    assert max(sizes) == next(iter(result.summary["workers"].values()))["max_batch_size"]


def test_classes_of_requests(workload):
    result = servetwin.run(workload, rate=5, requests=60)
    by = result.by("outcome")
    assert sum(by["requests"]) == 60
    assert {row["outcome"]: row["attainment"] for row in by}["met"] == 1.0
    halves = result.by(lambda row: row["steps.dit"] > 225)
    assert set(halves["class"]) == {True, False}
    assert sum(halves["met"]) == result.met
    for row in halves:
        own = [r["latency"] for r in result.requests if (r["steps.dit"] > 225) == row["class"] and r["latency"]]
        assert row["mean_latency"] == pytest.approx(fmean(own))
        assert row["p99_latency"] == pytest.approx(float(np.percentile(own, 99)))
    with pytest.raises(KeyError, match=r"steps\.dit"):
        result.by("colour")


def test_tables_become_arrow_pandas_and_polars(workload):
    table = servetwin.run(workload, rate=5, requests=40).requests
    arrow, pandas, polars = table.to_arrow(), table.to_pandas(), table.to_polars()
    assert arrow.to_pylist() == table.to_dicts() == polars.to_dicts()
    assert list(pandas.columns) == table.columns == polars.columns
    assert pandas["arrival"].tolist() == table["arrival"]
    mixed = servetwin.Table({"a": [1, 2.5, None], "b": ["x", 1, None], "c": [[1], [], None]})
    assert mixed.to_arrow().to_pydict() == {"a": [1.0, 2.5, None], "b": ["x", "1", None], "c": [[1], [], None]}
    assert mixed[1] == {"a": 2.5, "b": 1, "c": []}
    assert mixed[-2:] == [mixed[1], mixed[2]]
    assert len(mixed) == 3
    assert "2.5" in repr(mixed)
    import pyarrow

    assert pyarrow.table(mixed).num_rows == 3


def test_what_to_install_is_said_where_a_package_is_missing(workload, monkeypatch):
    table = servetwin.Table({"a": [1]})
    for package, call in (("pandas", table.to_pandas), ("polars", table.to_polars), ("pyarrow", table.to_arrow)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"{package} is not installed \(right would be: pip install '"):
            call()


# -- policies ---------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The policy `Shortest` as a file."""
    path = tmp_path / "shortest.py"
    path.write_text(
        "from servetwin.core import Decision, Policy\n\n\nclass Shortest(Policy):\n"
        "    def __init__(self, max_batch: int = 8) -> None:\n        self.max_batch = max_batch\n\n"
        "    def decide(self, view, now):\n"
        "        tasks = sorted([*view.running, *view.waiting], key=lambda task: (task.left, task.id))\n"
        "        return Decision(tasks[: min(self.max_batch, view.limit)])\n"
    )
    return path


def test_a_policy_is_a_class_a_file_or_a_function_and_all_decide_alike(workload, file):
    def run(policy):
        return plain(servetwin.run(workload, rate=4, requests=50, policy=policy))

    eight, two = run(str(file)), run((str(file), {"max_batch": 2}))
    assert eight != two
    for policy in (file, Shortest, lambda: Shortest(), {"name": Shortest}, functools.partial(Shortest)):
        assert run(policy) == eight
    partial = functools.partial(Shortest, max_batch=2)
    strange = functools.partial(Shortest, max_batch=2, keys={1: 2})  # no key of JSON is a number
    named = {"name": file, "params": {"max_batch": np.int64(2)}}
    for policy in (
        (Shortest, {"max_batch": 2}),
        (file, {"max_batch": 2}),
        lambda: Shortest(2),
        partial,
        named,
        strange,
    ):
        assert run(policy) == two


def test_a_class_that_was_made_in_a_function_or_typed_in_is_the_object_that_it_is(workload):
    limit = 8

    class Closure(Shortest):
        def decide(self, view, now):
            tasks = sorted([*view.running, *view.waiting], key=lambda task: (task.left, task.id))
            return Decision(tasks[: min(limit, view.limit)])

    eight = servetwin.run(workload, rate=4, requests=50, policy=Closure)
    assert plain(eight) == plain(servetwin.run(workload, rate=4, requests=50, policy=Shortest))
    limit = 2
    two = servetwin.run(workload, rate=4, requests=50, policy=Closure)
    assert plain(two) == plain(servetwin.run(workload, rate=4, requests=50, policy=(Shortest, {"max_batch": 2})))
    assert eight.policy == two.policy == "Closure"
    assert "min(limit, view.limit)" in two.meta["policy_texts"]["Closure"]


def test_a_class_of_a_notebook(workload, tmp_path):
    """A main module that no file holds, and that asks for several processes."""
    code = """
import servetwin
class Typed(servetwin.Policy):
    def __init__(self, max_batch: int = 8) -> None: self.max_batch = max_batch
    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda task: (task.left, task.id))
        return servetwin.Decision(tasks[: min(self.max_batch, view.limit)])
class Broken(servetwin.Policy):
    def decide(self, view, now): return 1 / 0
print(servetwin.run(WORKLOAD, rate=4, requests=50, policy=Typed).attainment)
table = servetwin.sweep(WORKLOAD, rate=[3, 4], requests=50, policy=["edf", Typed, (Typed, {"max_batch": 2})], jobs=2)
print(*table["attainment"])
try: servetwin.run(WORKLOAD, requests=50, policy=Broken)
except servetwin.RunError as error: print(error, repr(error.__cause__))
""".replace("WORKLOAD", repr(workload))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"], input=code, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    one, many, broken = done.stdout.splitlines()
    assert float(one) == servetwin.run(workload, rate=4, requests=50, policy=Shortest).attainment
    policies = ["edf", Shortest, (Shortest, {"max_batch": 2})]
    wanted = [servetwin.run(workload, rate=r, requests=50, policy=p).attainment for p in policies for r in (3, 4)]
    assert sorted(map(float, many.split())) == sorted(wanted)
    assert "the policy failed" in broken
    assert "ZeroDivisionError('division by zero')" in broken


def test_classes_that_can_be_found_again_go_by_their_names(workload):
    assert servetwin.run(workload, requests=10, policy=EDF).policy == "edf"
    shadow = type("edf", (Shortest,), {})  # another one of that name is another policy
    assert servetwin.run(workload, requests=10, policy=shadow).policy != "edf"


def test_each_worker_has_a_policy_of_its_own(workload):
    made = []

    def factory():
        made.append(Shortest())
        return made[-1]

    servetwin.run(workload, requests=10, policy=factory, records=False)
    assert len(made) == len({id(policy) for policy in made}) > 2
    policy = Shortest()
    with pytest.raises(servetwin.Error, match="same policy twice"):
        servetwin.run(workload, requests=10, policy=lambda: policy)
    with pytest.raises(TypeError, match=r"one policy object.*Shortest, the class"):
        servetwin.run(workload, requests=10, policy=policy)


def test_a_worker_may_have_a_policy_of_its_own(workload):
    full = servetwin.run(workload, requests=30, policy="edf").experiment
    for worker in full["deployment"]["workers"]:
        worker["policy"] = (Shortest, {"max_batch": 2})
    result = servetwin.run(full)
    assert max(told["max_batch_size"] for told in result.summary["workers"].values()) == 2


# -- folders ----------------------------------------------------------------------------------------------


def test_a_run_is_saved_and_loaded(workload, tmp_path):
    result = servetwin.run(workload, requests=30)
    temporary = result.folder
    assert temporary is not None
    assert result.save(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    again = servetwin.load(str(tmp_path / "a" / "b"))
    assert (again.summary, again.experiment, again.meta) == (plain(result), result.experiment, result.meta)
    assert again.requests.to_dicts() == result.requests.to_dicts()
    assert again.real is None
    with pytest.raises(servetwin.Error, match="holds a run already"):
        result.save(tmp_path / "a" / "b")
    with pytest.raises(servetwin.Error, match=str(tmp_path / "a" / "b" / "meta.json")):
        result.save(tmp_path / "a" / "b" / "meta.json" / "c")
    del result
    gc.collect()
    assert not temporary.exists()


def test_a_folder_of_ones_own_stays_and_holds_one_run(workload, tmp_path):
    result = servetwin.run(workload, requests=30, folder=tmp_path / "run")
    assert result.folder == tmp_path / "run"
    assert {p.name for p in result.folder.iterdir()} >= {"meta.json", "summary.json", "requests.jsonl"}
    with pytest.raises(servetwin.Error, match=r"holds a run already \(right would be: another folder\)"):
        servetwin.run(workload, requests=30, folder=tmp_path / "run")
    assert servetwin.load(tmp_path / "run").attainment == result.attainment


def test_without_records_there_is_a_summary_and_no_more(workload, tmp_path):
    result = servetwin.run(workload, requests=30, records=False)
    assert result.folder is None
    assert plain(result) == plain(servetwin.run(workload, requests=30))
    for ask in (lambda: result.requests, lambda: result.save(tmp_path / "x"), lambda: result.meta, result.plot):
        with pytest.raises(servetwin.Error, match="kept no records"):
            ask()
    assert not (tmp_path / "x").exists()


def test_a_run_that_breaks_leaves_nothing_and_says_whose_fault_it_was(workload, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(
        servetwin.RunError, match=r"the policy failed: .*in decide: LookupError: no such table$"
    ) as got:
        servetwin.run(workload, requests=30, policy=Faulty)
    assert isinstance(got.value.__cause__, LookupError)
    del got
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_a_keyboard_interrupt(workload):
    class Impatient(Policy):
        def decide(self, view, now):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        servetwin.run(workload, requests=30, policy=Impatient)


def test_no_request_has_no_attainment():
    assert math.isnan(servetwin.Result({"attainment": None}, {}).attainment)


def test_requests_of_a_trace(workload, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,steps\n0.0,200\n0.5,240\n2.0,220\n")
    steps = {"workload.steps.dit": {"draw": "trace"}}
    whole = servetwin.run(workload, trace=trace, settings=steps)
    assert whole.requests["steps.dit"] == [200, 240, 220]
    gaps = np.diff(whole.requests["arrival"])
    assert gaps == pytest.approx([0.5, 1.5], abs=0.01)
    two = servetwin.run(workload, trace={"file": trace}, requests=2, rate=4, settings=steps)
    assert np.diff(two.requests["arrival"]) == pytest.approx([0.25], abs=0.01)


def test_a_figure_of_a_run_shows_its_requests_and_batches(workload):
    from matplotlib.figure import Figure

    result = servetwin.run(workload, rate=5, requests=60)
    figure = result.plot()
    assert isinstance(figure, Figure)
    above, below = figure.axes
    shown = {str(line.get_label()).split(" ")[0]: len(line.get_xdata()) for line in above.lines}
    assert shown == {o: n for o in ("met", "late", "dropped", "failed") if (n := result.summary[o])}
    assert [line.get_label() for line in below.lines] == list(result.summary["workers"])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_key_that_is_set_twice(workload):
    with pytest.raises(servetwin.Error, match=r"^settings\['rate'\]: rate sets workload\.arrivals\.rate as well"):
        servetwin.run(workload, rate=2, settings={"rate": 3})
    same = {"slo": 2.0, "slo.factor": 3.0}
    with pytest.raises(servetwin.Error, match=r"^settings\['slo\.factor'\]: settings\['slo'\] sets slo\.factor"):
        servetwin.sweep(workload, rate=[2, 3], settings=same)
