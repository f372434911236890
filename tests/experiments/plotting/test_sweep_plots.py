"""`servetwin plot` draws what a sweep's table holds."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from servetwin.core import BadInput
from servetwin.experiments.plotting.style import STYLE, Sheet
from servetwin.experiments.plotting.sweep_plot import Asked, draw
from servetwin.experiments.sweeps import sweep, tables
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.comparison.compare_grids import read_rows


def kept_figures(monkeypatch) -> list[Figure]:
    """The figures that are saved from now on."""
    kept: list[Figure] = []
    save = Sheet.save
    monkeypatch.setattr(Sheet, "save", lambda sheet, *paths: [kept.append(sheet.figure), *save(sheet, *paths)][1:])
    return kept


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
    kept = kept_figures(monkeypatch)
    for file in (table, table.with_suffix(".parquet")):
        assert draw(file, table.with_suffix(".png"))[0] == 2
        panels = kept[-1].axes
        assert [panel.get_title(loc="left") for panel in panels] == ["slo_factor 2.0", "slo_factor 3.0"]
        assert panels[0].get_xlabel() == "rate (requests/s)"
        for panel in panels:
            assert [line.get_label() for line in panel.lines] == ["edf", "mine.py"]
            for line in panel.lines:
                assert list(line.get_xdata()) == [2.0, 4.0]
                assert list(line.get_ydata()) == pytest.approx([0.55, 0.3])
            assert len(panel.collections) == 2  # the intervals


def test_a_line_its_interval_and_what_was_measured_of_it_stand_in_one_place(table, monkeypatch):
    """Lines whose intervals are bars stand beside each other, each with all that belongs to it."""
    kept = kept_figures(monkeypatch)
    measured = [{"workload": "w", "policy": "edf", "rate": 2.0, "slo_factor": 2.0, "attainment": 0.5}]
    tables.write(table.with_name("m.csv"), measured)
    draw(table, table.with_suffix(".png"), asked=Asked(measured=[table.with_name("m.csv")]))
    panel = kept[0].axes[0]
    edf, mine, mark = panel.lines
    offsets = [part.get_transform().transform((2.0, 0.5))[0] for part in (edf, mark, mine, *panel.collections)]
    assert offsets[0] == offsets[1] == offsets[3]
    assert offsets[2] == offsets[4] > offsets[0]
    assert panel.get_xlim()[0] == pytest.approx(1.9)  # as without shifts
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["2", "4"]
    draw(table, table.with_suffix(".png"), asked=Asked(intervals="band"))
    assert {line.get_transform().transform((2.0, 0.5))[0] for line in kept[1].axes[0].lines} == {
        kept[1].axes[0].transData.transform((2.0, 0.5))[0]
    }


def test_letters_that_no_font_has_are_told_in_a_line(table, servetwin):
    table.write_text(table.read_text().replace("edf", "\U00012000\U00012001"))
    code, out, err = servetwin("plot", table, "--out", table.with_suffix(".png"))
    assert code == 0
    assert "2 panels" in out
    (line,) = err.splitlines()
    assert line.startswith("servetwin: no font here has \U00012000\U00012001, drawn as boxes (right would be: a font")


def test_no_column_of_data_is_empty(table):
    only = [row for row in read_rows(table) if row["slo_factor"] == "2.0"]
    tables.write(table, [{k: v for k, v in row.items() if not k.startswith("attainment_")} for row in only])
    _, files = draw(table, table.with_suffix(".png"))
    assert list(read_rows(files[-1])[0]) == ["line", "kind", "x_name", "x", "y_name", "y"]


def test_runs_of_other_lengths_are_no_repeats(table, monkeypatch):
    kept = kept_figures(monkeypatch)
    rows = [
        {"workload": "w", "policy": "edf", "rate": rate, "seed": 0, "requests": requests, "met": 5,
         "attainment": requests / 100}
        for rate in (2.0, 4.0) for requests in (10, 50)
    ]  # fmt: skip
    tables.write(table, rows)
    assert draw(table, table.with_suffix(".png"))[0] == 2
    assert [panel.get_title(loc="left") for panel in kept[0].axes] == ["requests 10", "requests 50"]
    assert [list(line.get_ydata()) for panel in kept[0].axes for line in panel.lines] == [[0.1, 0.1], [0.5, 0.5]]


def test_columns_go_by_the_short_names_of_axes_too(table, monkeypatch):
    kept = kept_figures(monkeypatch)
    rows = [
        {"policy": "edf", "slo_factor": slo, "deployment.router": router, "seed": 0, "requests": 10, "met": 5,
         "attainment": 0.5}
        for slo in (2.0, 3.0) for router in ("round_robin", "least_loaded")
    ]  # fmt: skip
    tables.write(table, rows)
    assert draw(table, table.with_suffix(".png"), asked=Asked(x="slo", by="router"))[0] == 1
    (panel,) = kept[-1].axes
    assert [line.get_label() for line in panel.lines] == ["round_robin", "least_loaded"]
    assert [list(line.get_xdata()) for line in panel.lines] == [[2.0, 3.0]] * 2


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_equal_tables_give_equal_figures(table, ending):
    files = [table.with_name(f"{n}{ending}") for n in "ab"]
    for file in files:
        draw(table, file, asked=Asked(x="slo_factor", by="rate"))
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
        draw(table, table.with_suffix(".png"), asked=Asked(**options))


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


def vary(tmp_path: Path, policies=("edf", "fcfs")) -> Path:
    """The table of a sweep that varies rate, cv and both SLOs one at a time, around 2, 1 and 1.5."""
    places = [{"rate": rate} for rate in (1.0, 2.0, 3.0)] + [{"cv": cv} for cv in (1.0, 4.0)]
    places += [{"prefill_slo": slo, "decode_slo": slo} for slo in (1.2, 1.5, 2.0)]
    base = {"rate": 2.0, "cv": 1.0, "prefill_slo": 1.5, "decode_slo": 1.5}
    rows = [
        {"workload": workload, "policy": policy, **base, **place, "seed": 0, "requests": 10, "met": 5,
         "attainment": 0.5, "attainment_low": 0.4, "attainment_high": 0.6, "p99_ttft_ms": 100.0}
        for workload in ("v", "w") for policy in policies for place in places
    ]  # fmt: skip
    unique = list({str(row): row for row in rows}.values())
    tables.write(tmp_path / "vary.csv", unique)
    return tmp_path / "vary.csv"


def test_settings_varied_one_at_a_time_have_a_panel_each(tmp_path, monkeypatch):
    kept = kept_figures(monkeypatch)
    panels, files = draw(vary(tmp_path), tmp_path / "a.png")
    assert panels == 6  # two workloads along three settings, of which the last is two columns
    figure = kept[0]
    across = [axes.get_xlabel() for axes in figure.axes[3:]]
    assert across == ["rate (requests/s)", "cv of the gaps", "SLO of prefill (× alone)"]
    assert [axes.get_title(loc="left") for axes in figure.axes[::3]] == ["v", "w"]
    for axes, places in zip(figure.axes[:3], ([1.0, 2.0, 3.0], [1.0, 4.0], [1.2, 1.5, 2.0]), strict=True):
        assert [list(line.get_xdata()) for line in axes.lines] == [places] * 2
    data = read_rows(files[-1])
    assert files[-1].name == "a.data.csv"
    assert len(data) == 2 * 2 * (3 + 2 + 3)
    assert data[0] == {
        "panel": "v", "line": "edf", "kind": "simulated", "x_name": "rate (requests/s)", "x": "1.0",
        "y_name": "attainment", "y": "0.5", "y_low": "0.4", "y_high": "0.6",
    }  # fmt: skip
    # One of them alone, around the same point.
    assert draw(tmp_path / "vary.csv", tmp_path / "b.png", asked=Asked(x="cv", y="p99_ttft_ms"))[0] == 2
    assert [list(line.get_xdata()) for line in kept[1].axes[0].lines] == [[1.0, 4.0]] * 2
    assert kept[1].axes[0].get_ylabel() == "TTFT, p99 (ms)"


@pytest.mark.parametrize("width", ["column", "page"])
def test_legends_of_many_lines_with_long_names_are_whole(tmp_path, monkeypatch, width):
    kept = kept_figures(monkeypatch)
    policies = [f"/somewhere/a_policy_whose_name_is_{'rather_' * n}long_{n}.py" for n in range(9)]
    draw(vary(tmp_path, policies), tmp_path / "a.png", asked=Asked(x="rate", width=width))
    figure = kept[0]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
    assert box.y1 <= page.y1
    assert all(axes.get_tightbbox().y1 <= box.y0 for axes in figure.axes)
    assert all(axes.bbox.height > 0.8 * 72 for axes in figure.axes)  # and the panels are no smaller for it
    told = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert told == [Path(policy).name for policy in policies]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 9


def test_what_was_measured_in_the_same_setup_is_laid_over(tmp_path, monkeypatch):
    kept = kept_figures(monkeypatch)
    (tmp_path / "s.yaml").write_text(
        "extends: palette-256-rtx4090\ngrid: {variant: [neustream-ae, clockwork-ae], rate: [0.4, 0.5]}\n"
    )
    sweep.sweep(tmp_path / "s.yaml", tmp_path / "s.csv", jobs=1)
    _, files = draw(tmp_path / "s.csv", tmp_path / "s.png", asked=Asked(y="met"))
    shown = {(r["line"].split(",")[0], float(r["x"]), float(r["y"])) for r in read_rows(files[-1])
             if r["kind"] == "measured"}  # fmt: skip
    _, runs = run_table.read(run_table.NEUSTREAM)
    own = [r for r in runs if r.workload == "palette-256-rtx4090" and (r.cv, r.slo_factor) == (2.0, 3.0)]
    assert shown == {(r.policy, r.rate, float(r.met)) for r in own if r.rate in (0.4, 0.5)}
    assert {line.get_markerfacecolor() for line in kept[0].axes[0].lines} > {"none"}
    # A table of measured runs of one's own: those at other rates too, and none of another cv.
    mine = tmp_path / "mine.csv"
    mine.write_text(
        "workload,policy,rate,cv,slo_factor,requests,met,finished\n"
        "palette-256-rtx4090,neustream,0.45,2,3,100,90,95\npalette-256-rtx4090,neustream,0.45,1,3,100,80,95\n"
    )
    _, files = draw(tmp_path / "s.csv", tmp_path / "t.png", asked=Asked(measured=(mine,)))
    shown = {float(r["x"]): float(r["y"]) for r in read_rows(files[-1]) if r["kind"] == "measured"}
    assert shown[0.45] == 0.9
    with pytest.raises(BadInput, match="no such file"):
        draw(tmp_path / "s.csv", tmp_path / "t.png", asked=Asked(measured=(tmp_path / "none.csv",)))
    # Without the file that says what a row is of, nothing is laid over.
    (tmp_path / "s.csv.spec.yaml").unlink()
    _, files = draw(tmp_path / "s.csv", tmp_path / "s.png", asked=Asked(y="met"))
    assert {r["kind"] for r in read_rows(files[-1])} == {"simulated"}


def test_vector_figures_hold_letters_and_no_pixels(table):
    draw(table, table.with_suffix(".pdf"), table.with_suffix(".svg"), asked=Asked(intervals="band"))
    pdf = table.with_suffix(".pdf").read_bytes()
    assert b"/Type3" not in pdf  # which publishers refuse
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert "<image" not in table.with_suffix(".svg").read_text()
    assert STYLE["font.size"] == 7


@pytest.mark.parametrize("cell", ["much", "inf", "-1", "1.5"])
def test_cells_that_cannot_be_are_no_points_that_are_missing(table, cell):
    rows = read_rows(table)
    rows[3]["attainment"] = cell
    tables.write(table, rows)
    with pytest.raises(BadInput, match=r"attainment of row 4: .* is no (number|share)"):
        draw(table, table.with_suffix(".png"))
    assert not table.with_suffix(".png").exists()


def test_names_are_no_formulas(table, monkeypatch):
    kept = kept_figures(monkeypatch)
    rows = [{**row, "policy": r"$\frac{$" if row["policy"] == "edf" else "a$b$c"} for row in read_rows(table)]
    tables.write(table, rows)
    draw(table, *(table.with_suffix(f".{ending}") for ending in ("png", "pdf", "svg")))
    assert [text.get_text() for text in kept[0].legends[0].get_texts()] == [r"$\frac{$", "a$b$c"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_full_disk_is_one_line(table, ending, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: write(Path("/dev/full"), content))
    with pytest.raises(BadInput, match="No space left on device"):
        draw(table, table.with_suffix(f".{ending}"))
    assert sorted(path.name for path in table.parent.iterdir()) == ["t.csv", "t.parquet"]
