"""`servetwin figures` draws the published figures."""

from pathlib import Path

import matplotlib as mpl
import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.plotting import draw_all, paper_figures, paper_figures_agents
from servetwin.experiments.plotting.style import data_beside
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import results_of, settings_of
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.comparison.compare_grids import read_rows


def rows_of(workload: str, places, **more):
    rows = []
    for rate, slo, variant in places:
        chosen = [("variant", variant), ("rate", rate), ("slo", slo), ("requests", 30)]
        experiment = load(workload, chosen)
        rows.append({**settings_of(experiment), **results_of(experiment, build.run(experiment)), **more})
    return rows


def test_a_goodput_figure_has_every_axis_and_every_measured_point(tmp_path: Path):
    places = [(rate, slo, "neustream-ae") for rate, slo in ((0.3, 3.0), (0.4, 3.0), (0.4, 1.5))]
    rows = rows_of("palette-256-rtx4090", places)
    assert paper_figures.base_of(rows) == {"rate": 0.4, "cv": 2.0, "slo_factor": 3.0}
    _, runs = run_table.read(run_table.NEUSTREAM)
    for ending in ("png", "svg", "pdf"):
        path = tmp_path / f"figure.{ending}"
        paper_figures.goodput_figure(rows, runs).save(path)
        first = path.read_bytes()
        paper_figures.goodput_figure(rows, runs).save(path)
        assert path.read_bytes() == first
    shown = [r for r in read_rows(data_beside(path)) if r["kind"] == "measured"]
    own = [
        r for r in runs if (r.workload, r.policy, r.cv, r.slo_factor) == ("palette-256-rtx4090", "neustream", 2, 3)
    ]
    along = sorted(float(r["x"]) for r in shown if r["x_name"].startswith("rate"))
    assert along == sorted(r.rate for r in own)


def test_met_and_finished_are_two_series_where_met_moves_between_repeats(tmp_path: Path):
    rows = rows_of("dit-s2-256-rtx4090", [(2.0, 3.0, "clockwork-ae"), (4.0, 3.0, "clockwork-ae")])
    _, runs = run_table.read(run_table.NEUSTREAM)
    sheet = paper_figures.goodput_figure(rows, runs, axes=("rate",))
    shown = {(p["line"], p["kind"], p["x"]): p["y"] for p in sheet.points}
    (own,) = [r for r in runs if (r.workload, r.policy, r.rate) == ("dit-s2-256-rtx4090", "clockwork", 4.0)]
    assert shown["clockwork", "measured", 4.0] == own.met
    assert shown["clockwork, finished (DiT-S/2)", "measured", 4.0] == own.finished
    assert shown["clockwork", "simulated", 4.0] == rows[1]["met"]
    assert shown["clockwork, finished (DiT-S/2)", "simulated", 4.0] == rows[1]["finished"]
    sheet.figure.draw_without_rendering()
    assert len(sheet.figure.axes[0].lines) == 4


def test_the_bound_of_the_largest_system_is_drawn_where_it_is_known():
    rows = [
        {**row, "bound": bound}
        for row, bound in zip(
            rows_of(
                "palette-256-rtx4090",
                [(rate, 3.0, v) for rate in (0.4, 0.8) for v in ("neustream-ae", "clockwork-ae")],
            ),
            (1.0, 0.9, 0.8, 0.6),
            strict=True,
        )
    ]
    sheet = paper_figures.goodput_figure(rows, [], axes=("rate",))
    drawn = [(p["line"], p["x"], p["y"]) for p in sheet.points if p["kind"] == "bound"]
    assert drawn == [("no schedule more than", 0.4, 30.0), ("no schedule more than", 0.8, 24.0)]
    with pytest.raises(BadInput, match="a bound is of requests met"):
        draw_all.check([14], ["png"], None, bound=True)
    draw_all.check([11, 14], ["png"], None, bound=True)


def test_batch_sizes_over_time_hold_all_that_ran_before_the_last_arrival(toy: Path):
    experiment = load(toy, [("requests", 200), ("system.stop_after", 0.0)])
    times, sizes = paper_figures.batch_sizes(experiment)
    assert len(times) == len(sizes) == paper_figures.BINS
    assert 0 < max(sizes) <= 8 + 1e-9


def test_a_batch_figure(toy: Path, tmp_path: Path):
    experiments = [load("palette-256-rtx4090", [("rate", 1.0), ("requests", 50)]), load(toy)]
    figure, data = paper_figures.batch_figure(experiments).save(tmp_path / "figure.png")
    assert figure.stat().st_size > 10_000
    kinds = {(r["panel"].split(",")[0], r["kind"]) for r in read_rows(data)}
    assert kinds == {(experiments[0].name, k) for k in ("measured", "simulated")} | {
        (experiments[1].name, "simulated")
    }


def test_figures_of_tokens_say_that_they_are_one_draw_or_show_intervals(tmp_path: Path) -> None:
    def row(rate: float, **more: object) -> dict[str, object]:
        place = {"workload": "w", "policy": "vllm", "deployment": "d", "rate": rate, "cv": 1.0, "decode_slo": 1.5}
        return {**place, "token_goodput": 10.0 * rate, **more}

    def drawn(rows: list[dict[str, object]]) -> tuple[str, int]:
        figure = paper_figures.token_figure(rows).figure
        return figure.get_supxlabel(), len(figure.axes[0].collections)

    one = drawn([row(1.0), row(2.0)])
    ends = {"token_goodput_low": 8.0, "token_goodput_high": 12.0, "seeds": 4}
    assert one == ("simulated; one draw of arrivals and lengths: no intervals", 0)
    assert drawn([row(1.0, **ends), row(2.0, **ends)]) == ("simulated; means over 4 seeds, 95 % intervals", 1)


def test_agents_have_intervals_too():
    agents = [f"{a}.{w}_goodput" for a in paper_figures_agents.AGENTS for w in ("token", "prefill", "decode")]
    ends = {"": 2.0, "_low": 1.0, "_high": 3.0}
    rows = [
        {"policy": policy, "rate": rate, "cv": 1.0, "decode_slo": 1.8, "seeds": 3}
        | {f"{c}{end}": v for c in (*agents, "request_goodput") for end, v in ends.items()}
        for policy in ("vllm", "neustream-llm")
        for rate in (0.7, 0.8)
    ]
    for sheet in (paper_figures_agents.agents_figure(rows), paper_figures_agents.first_and_last_figure(rows[::2])):
        assert "means over 3 seeds" in sheet.figure.get_supxlabel()
        assert {(p["y_low"], p["y_high"]) for p in sheet.points} == {(1.0, 3.0)}
        assert all(axes.collections for axes in sheet.figure.axes)


def test_one_figure_at_a_time_in_several_formats(servetwin, tmp_path: Path):
    code, out, err = servetwin("figures", 19, "--out", tmp_path, "--format", "pdf", "--format", "svg", "--jobs", 1)
    names = ["figure19.pdf", "figure19.svg", "figure19.data.csv", "figure19.csv"]
    assert (code, err, out.split()) == (0, "", [str(tmp_path / name) for name in names])
    assert {p.name for p in tmp_path.iterdir()} == {*names, "figure19.csv.spec.yaml"}
    heights = {(r["panel"], r["line"], r["x"]): float(r["y"]) for r in read_rows(tmp_path / names[2])}
    (vllm,) = [r for r in read_rows(tmp_path / names[3]) if r["policy"] == "vllm"]
    assert heights["first tokens", "vllm", "Code Llama 1"] == float(vllm["codellama_1.prefill_goodput"])
    with mpl.rc_context({"svg.fonttype": "none"}):
        assert "one draw" in paper_figures_agents.draws_of([vllm])


@pytest.mark.parametrize(
    ("numbers", "options", "told"),
    [
        ([16], {}, "FIGURES: there is no figure 16 .right would be: 11, 12, 13, 14, 15, 17, 19"),
        ([11], {"endings": ["gif"]}, "--format: 'gif' is no format"),
        ([11, 13], {"seeds": 3}, "--seeds: Figures 11 to 13 have the arrivals of the measured runs"),
    ],
)
def test_no_figure_of_the_paper(tmp_path: Path, numbers, options, told):
    with pytest.raises(BadInput, match=told):
        draw_all.draw_all(tmp_path, numbers, **options)
    assert not list(tmp_path.iterdir())
