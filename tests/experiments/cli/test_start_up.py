"""What a short run loads: most of its time is spent on that."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servetwin.experiments.cli.output import terminal

#: Loaded by commands that draw, write tables or compute on a device, each at a cost that a short run would feel.
FOR_OTHERS = {
    "rich", "numpy.ma", "scipy", "pandas", "pyarrow", "matplotlib", "torch", "vllm", "multiprocessing",
    "concurrent.futures", "asyncio", "servetwin.real", "servetwin.experiments.reporting",
    "servetwin.experiments.workload.trace_reader", "servetwin.experiments.capacity",
}  # fmt: skip

LOADED = """
import sys
from servetwin.experiments.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("workload", ["dit-s2-256-rtx4090", "opt-13b-h100"])
def test_a_run_loads_nothing_that_only_other_commands_need(workload: str):
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, "run", workload, "--requests", "20"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "20 requests" in ran.stdout
    loaded = set(ran.stderr.split())
    assert "servetwin.experiments.assembly.build" in loaded
    assert loaded & FOR_OTHERS == set()


MADE = """
import sys
from servetwin.experiments.cli import main
try:
    main()
finally:
    from servetwin.experiments.spec import experiment, llm
    from servetwin.experiments.spec.keys import autoscaler, faults
    from servetwin.profiles.llm import schema
    for module in (experiment, llm, autoscaler, faults, schema):
        for name, kind in vars(module).items():
            if getattr(kind, "__pydantic_complete__", False):
                print(name, file=sys.stderr)
"""


def test_what_checks_parts_that_a_file_leaves_out_is_not_made():
    command = [sys.executable, "-c", MADE, "run", "dit-s2-256-rtx4090", "--requests", "20"]
    made = set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())
    assert "Experiment" in made
    late = {"EngineSpec", "AutoscalerSpec", "FaultsSpec", "RequestClass", "SessionsSpec", "Lengths", "TokenData"}
    assert made & {*late, "BudgetSpec", "System", "Time", "Records"} == set()


WORDS = st.text("abcdefghij 0123456789.,%+-", max_size=12).map(str.strip)


@given(st.data())
def test_a_table_of_figures_is_written_to_a_file_as_rich_would_write_it(data):
    sides = data.draw(st.lists(st.sampled_from(["left", "right"]), min_size=1, max_size=5))
    columns = [(data.draw(WORDS), side) for side in sides]
    rows = data.draw(st.lists(st.tuples(*[WORDS] * len(sides)), max_size=6))
    rows.append(data.draw(st.tuples(*[WORDS.filter(bool)] * len(sides))))
    ours, theirs = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(ours):
        terminal.print_figures(columns, rows)
    with contextlib.redirect_stdout(theirs):
        lines = terminal.table(*columns)
        for row in rows:
            lines.add_row(*row)
        terminal.print_table(lines)
    assert ours.getvalue() == theirs.getvalue()
