"""Records as lines: the bytes of ``json.dumps``, whatever texts and numbers they hold."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servetwin.core import json_lines
from servetwin.core.json_lines import AT_ONCE, Column, JsonLines, lines_of, texts_of

numbers = st.floats() | st.integers() | st.floats(min_value=0.0, max_value=0.001) | st.booleans() | st.none()
texts = (
    st.text()
    | st.text('a1e-":,[]{}\\ 5')
    | st.sampled_from(["met", "", "no slack: 1e-5, or less", "0.00001", 'a"b', ":"])
)
values = st.recursive(
    numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def written(records: list, path: Path) -> bytes:
    lines = JsonLines(path)
    for record in records:
        lines.add(record)
    lines.close()
    return path.read_bytes()


@settings(max_examples=40)
@given(st.lists(st.dictionaries(texts, values, max_size=5), max_size=2 * AT_ONCE))
@example([{"due": [1.0, 1e-5, 1.5e-6, 1e-10, 1e16, 5e-324]}, {"reason": "x,1e-5]", "at": 1e-6}])
@example([{"a": "", "b": [":", "", ","], "c": "0.00001"}])
def test_lines_are_those_of_json(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    assert written(records, path) == "".join(json.dumps(r) + "\n" for r in records).encode()


def test_the_fast_way_is_taken_where_texts_are_plain(tmp_path: Path, monkeypatch):
    def refuse(records):
        raise AssertionError(records)

    monkeypatch.setattr(json_lines, "_by_json", refuse)
    record = {"id": 1, "worker": "llm-1", "due": [0.25, 1.5e-7], "reason": None}
    assert written([record], tmp_path / "a.jsonl") == (json.dumps(record) + "\n").encode()
    with pytest.raises(AssertionError):
        written([{"reason": "one, two"}], tmp_path / "b.jsonl")


@settings(max_examples=40)
@given(texts, st.lists(st.tuples(st.floats() | st.floats(-0.001, 0.001), st.integers()), min_size=1, max_size=20))
@example("100 %b", [(1e-5, 0), (0.0001, 1), (-0.00005, 2), (12.00001, 3), (0.0, 4), (1e16, 5)])
def test_lines_of_columns_are_those_of_each_record(text, rows):
    numbers, ids = zip(*rows, strict=True)
    both = Column([json.dumps([number, i]).encode() for number, i in rows])
    found = lines_of({"id": Column(texts_of(ids)), text: {"at": np.array(numbers), "said": text}, "both": both})
    expected = [{"id": i, text: {"at": number, "said": text}, "both": [number, i]} for number, i in rows]
    assert found == [(json.dumps(record) + "\n").encode() for record in expected]


def test_lines_come_after_what_was_added_before(tmp_path: Path):
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.add({"id": 0})
    lines.add_lines(lines_of({"id": np.array([1, 2])}))
    lines.add({"id": 3})
    lines.close()
    assert [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="JSON has nothing for"):
        lines_of({"id": np.array([1]), "set": {1}})


def test_a_killed_process_loses_a_few_lines_and_none_in_part(tmp_path: Path):
    lines = JsonLines(tmp_path / "a.jsonl")
    for number in range(5 * AT_ONCE + 3):
        lines.add({"id": number})
    found = (tmp_path / "a.jsonl").read_text()  # as it is on the disk now, nothing closed
    lines.close()
    assert [json.loads(line)["id"] for line in found.splitlines()] == [*range(5 * AT_ONCE)]
    assert found.endswith("\n")


def test_what_json_has_nothing_for_is_refused(tmp_path: Path):
    with pytest.raises(TypeError):
        written([{"id": object()}], tmp_path / "a.jsonl")
