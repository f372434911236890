"""A CSV file of latencies is a profile."""

import pytest
from servetwin.core import BadInput
from servetwin.profiles import load


def test_rows_are_samples_whose_median_counts(tmp_path):
    file = tmp_path / "My GPU.csv"
    file.write_text("module,batch,seconds\nunet,1,0.03\nunet,1,0.01\nunet,1,0.02\nunet,4,0.06\n\nvae,1,0.05\n")
    profile = load(file)
    assert profile.name == "csv/my-gpu"
    assert profile.modules == ("unet", "vae")
    unet = profile.table("unet", "scheduler")
    assert [unet(n) for n in (1, 2, 4)] == pytest.approx([0.02, 0.02 + 0.04 / 3, 0.06])
    assert profile.data.modules["unet"].tables["scheduler"].samples == (3, 1)


WRONG = {
    "": ":1: the first line says nothing (right would be: module,batch,seconds)",
    "batch,seconds\n": ":1: the first line says batch,seconds",
    "module,batch,seconds\n": "needs modules",
    "module,batch,seconds\nunet,1\n": ":2: 2 values",
    "module,batch,seconds\nunet,0,1.0\n": ":2: batch: '0' is no batch size",
    "module,batch,seconds\nunet,1.5,1.0\n": ":2: batch: '1.5' is no batch size",
    "module,batch,seconds\nunet,1,nan\n": ":2: seconds: 'nan' is no time (right would be: seconds, above 0)",
    "module,batch,seconds\nunet,1,fast\n": ":2: seconds: 'fast' is no time",
    "module,batch,seconds\nunet,1,-1\n": ":2: seconds: '-1' is no time",
    "module,batch,seconds\nunet,1,0.2\nunet,2,0.1\n": "unet: a batch of 2 takes 0.1 s, one of 1 takes 0.2 s",
    "module,batch,seconds\nU Net,1,0.2\n": "U Net",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_in_one_line(tmp_path, text):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        load(tmp_path / "mine.csv")
    assert str(caught.value).startswith(str(tmp_path / "mine.csv"))
    assert WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is no CSV file"):
        load(tmp_path / "bytes.csv")


def test_a_table_from_a_spreadsheet_begins_with_a_byte_order_mark(tmp_path):
    text = "module,batch,seconds\r\ndit,1,0.01\r\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8-sig", newline="")
    assert load(tmp_path / "mine.csv").table("dit", "scheduler")(1) == 0.01
