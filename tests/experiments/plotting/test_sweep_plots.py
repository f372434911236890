"""`servetwin plot` draws what a sweep's table holds."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from servetwin.core import BadInput
from servetwin.experiments.plotting import paper_figures
from servetwin.experiments.plotting.sweep_plot import draw
from servetwin.experiments.sweeps import tables


@pytest.fixture
def table(tmp_path):
    rows = [
        {"workload": "w", "policy": policy, "rate": rate, "slo_factor": slo, "seed": seed, "requests": 10, "met": 5,
         "attainment": 1.0 / rate + (0.1 if seed else 0.0), "attainment_low": 0.2, "attainment_high": 0.9}
        for policy in ("edf", "/x/mine.py") for rate in (4.0, 2.0) for slo in (2.0, 3.0) for seed in (0, 1)
    ]  # fmt: skip
    tables.write(tmp_path / "t.parquet", rows)
    tables.write(tmp_path / "t.csv", rows)
    return tmp_path / "t.csv"


def test_lines_are_means_over_seeds_by_policy_and_panels_the_rest(table, monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr(paper_figures, "save", lambda figure, path: kept.append(figure))
    for file in (table, table.with_suffix(".parquet")):
        assert draw(file, table.with_suffix(".png")) == 2
        panels = kept[-1].axes
        assert [panel.get_title(loc="left") for panel in panels] == ["slo_factor 2.0", "slo_factor 3.0"]
        assert panels[0].get_xlabel() == "rate (requests/s)"
        for panel in panels:
            assert [line.get_label() for line in panel.lines] == ["edf", "mine.py"]
            for line in panel.lines:
                assert list(line.get_xdata()) == [2.0, 4.0]
                assert list(line.get_ydata()) == pytest.approx([0.55, 0.3])
            assert len(panel.collections) == 2  # the intervals


def test_runs_of_other_lengths_are_no_repeats(table, monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr(paper_figures, "save", lambda figure, path: kept.append(figure))
    rows = [
        {"workload": "w", "policy": "edf", "rate": rate, "seed": 0, "requests": requests, "met": 5,
         "attainment": requests / 100}
        for rate in (2.0, 4.0) for requests in (10, 50)
    ]  # fmt: skip
    tables.write(table, rows)
    assert draw(table, table.with_suffix(".png")) == 2
    assert [panel.get_title(loc="left") for panel in kept[0].axes] == ["requests 10", "requests 50"]
    assert [list(line.get_ydata()) for panel in kept[0].axes for line in panel.lines] == [[0.1, 0.1], [0.5, 0.5]]


def test_columns_go_by_the_short_names_of_axes_too(table, monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr(paper_figures, "save", lambda figure, path: kept.append(figure))
    rows = [
        {"policy": "edf", "slo_factor": slo, "deployment.router": router, "seed": 0, "requests": 10, "met": 5,
         "attainment": 0.5}
        for slo in (2.0, 3.0) for router in ("round_robin", "least_loaded")
    ]  # fmt: skip
    tables.write(table, rows)
    assert draw(table, table.with_suffix(".png"), x="slo", by="router") == 1
    (panel,) = kept[-1].axes
    assert [line.get_label() for line in panel.lines] == ["round_robin", "least_loaded"]
    assert [list(line.get_xdata()) for line in panel.lines] == [[2.0, 3.0]] * 2


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_equal_tables_give_equal_figures(table, ending):
    files = [table.with_name(f"{n}{ending}") for n in "ab"]
    for file in files:
        draw(table, file, x="slo_factor", by="rate")
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"x": "rat"}, "--x: there is no column 'rat' in .*right would be: rate"),
        ({"y": "policy"}, "--y: column 'policy' holds no numbers"),
        ({"by": "nothing"}, "--by: there is no column 'nothing'"),
    ],
)
def test_what_is_not_in_the_table(table, options, told):
    with pytest.raises(BadInput, match=told):
        draw(table, table.with_suffix(".png"), **options)


def test_no_figure_or_no_table(table, tmp_path):
    with pytest.raises(BadInput, match=r"\.gif is no kind of figure"):
        draw(table, tmp_path / "a.gif")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="no sweep's table"):
        draw(tmp_path / "other.csv", tmp_path / "a.png")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(BadInput, match="no sweep's table"):
        draw(tmp_path / "empty.csv", tmp_path / "a.png")
    with pytest.raises(BadInput):
        draw(tmp_path / "none.csv", tmp_path / "a.png")


def test_figures_of_tokens_say_that_they_are_one_draw_or_show_intervals(tmp_path: Path) -> None:
    def row(rate: float, **more: object) -> dict[str, object]:
        place = {"workload": "w", "policy": "vllm", "deployment": "d", "rate": rate, "cv": 1.0, "decode_slo": 1.5}
        return {**place, "token_goodput": 10.0 * rate, **more}

    def drawn(name: str, rows: list[dict[str, object]]) -> str:
        with mpl.rc_context({"svg.fonttype": "none"}):
            return paper_figures.token_figure(rows, tmp_path / name).read_text()

    one = drawn("one.svg", [row(1.0), row(2.0)])
    ends = {"token_goodput_low": 8.0, "token_goodput_high": 12.0, "seeds": 4}
    several = drawn("several.svg", [row(1.0, **ends), row(2.0, **ends)])
    assert "one draw" in one
    assert "one draw" not in several
    assert "means over 4 seeds" in several
    assert several.count("FillBetweenPolyCollection") + several.count("PolyCollection") > one.count("PolyCollection")
