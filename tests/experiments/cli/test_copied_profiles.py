"""``servetwin profiles NAME --out FILE``: a copy that runs as the profile does, and that one may change."""

from pathlib import Path

import pytest
from servetwin.profiles import files, load


@pytest.mark.parametrize("name", ["rtx4090/dit-s2-256", "h200/opt-13b-tp1"])
def test_a_copy_is_the_profile_with_its_costs(name: str, servetwin, tmp_path: Path):
    out = tmp_path / "in" / "mine.yaml"
    code, said, _ = servetwin("profiles", name, "--out", out)
    assert code == 0
    assert said.endswith(f"copied to {out}\n")
    assert load(str(out)).digest == load(name).digest
    assert [f.read_bytes() for f in files(str(out))] == [f.read_bytes() for f in files(name)]


def test_a_number_that_is_changed_counts(servetwin, tmp_path: Path):
    out = tmp_path / "mine.yaml"
    servetwin("profiles", "h100/dit-s2-256-graphs", "--out", out)
    text = out.read_text()
    device = load("h100/dit-s2-256-graphs").data.device.name
    out.write_text(text.replace(device, "another device"))
    assert load(str(out)).data.device.name == "another device"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--out", "a.yaml"), "a NAME before it"),
        (("rtx4090/dit-s2-256", "--out", "a.csv"), "FILE.yaml"),
        (("rtx4090/dit-s2-256", "--out", "there.yaml"), "there.yaml exists"),
        (("rtx4090/dit-s2-256", "--out", "by.yaml"), "by.costs.yaml exists"),
        (("mine.csv", "--out", "a.yaml"), "mine.csv is a CSV file"),
        (("rtx4090/dit-s2-256", "--out", "there.yaml/a.yaml"), "there.yaml"),
        (("rtx4090/dit-s2-256", "--out", "nowhere.yaml"), "nowhere.yaml exists"),
        (("rtx4090/nothing", "--out", "a.yaml"), "unknown profile"),
    ],
)
def test_what_cannot_be_copied_is_refused(words, says, servetwin, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("")
    Path("by.costs.yaml").write_text("")
    Path("nowhere.yaml").symlink_to("none")
    Path("mine.csv").write_text("module,batch,seconds\ndit,1,0.01\n")
    before = {f.name for f in tmp_path.iterdir()}
    code, _, said = servetwin("profiles", *words)
    assert code == 2
    assert said.count("\n") == 1
    assert says in said
    assert {f.name for f in tmp_path.iterdir()} == before
