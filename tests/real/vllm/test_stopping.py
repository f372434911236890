"""SIGTERM ends a run on vLLM as Ctrl-C does: nothing that was live is lost, and no process is left."""

import pytest
from harness_stop import outcomes, stop

LONG = ["--set", "workload.lengths.llm.output.low=200", "--set", "workload.lengths.llm.output.high=400"]


@pytest.mark.parametrize("backend", ["vllm", "real"])
def test_sigterm_leaves_the_records_of_a_run(tmp_path, backend):
    folder = tmp_path / "run"
    # Those that cannot meet their deadlines are served all the same.
    run = ["run", "tiny-opt-cpu", "--backend", backend, "--any-device", "--requests", "3000", "--rate", "60"]
    code, said = stop([*run, *LONG, "--out", str(folder)], folder, group=backend == "real", wait=25.0)
    assert code == 143, said
    assert said.endswith(f"servetwin: terminated; what was recorded is in {folder}\n")
    found = outcomes(folder)
    assert 0 < len(found) < 3000
    assert ("failed", "terminated") in found
