"""Entry by entry, through windows of any size, JSON is what the standard library says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrove.data.json_entries import read_entries
from detrove.errors import InputError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=3), each, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["images", "annotations", "é", "x"]), values) | values,
    st.sampled_from([None, 0, 2]),
    st.sampled_from([1, 2, 7, 1000]),
    st.booleans(),
)
def test_any_value_through_any_window(
    tmp_path_factory: pytest.TempPathFactory, content: Any, indent: int | None, chunk: int, escape: bool
) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=escape), encoding="utf-8")
    taken: list[Any] = []
    found = read_entries(file, {"annotations": lambda entry, line: taken.append(entry)}, chunk)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        assert taken == content["annotations"]
        assert found == content | {"annotations": []}
    else:
        assert taken == []
        assert found == content


@pytest.mark.parametrize("chunk", [3, 40, 1000])
def test_lines(tmp_path: Path, chunk: int) -> None:
    file = tmp_path / "a.json"
    file.write_text('\n{"x": [\n1],\n\n"annotations": [\n{"a":\n1}, {"b": 2},\n\n3]\n}\n')
    taken: list[tuple[Any, int]] = []
    read_entries(file, {"annotations": lambda entry, line: taken.append((entry, line))}, chunk)
    assert taken == [({"a": 1}, 6), ({"b": 2}, 7), (3, 9)]


def test_a_file_of_one_line_has_no_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"annotations": [1, 2]}\n')
    lines: list[int] = []
    read_entries(file, {"annotations": lambda entry, line: lines.append(line)})
    assert lines == [0, 0]


BROKEN = [
    *("", " ", "{", "[1,", '{"a" 1}', '{"a": 1,}', "{1: 2}", '{"a": 1} x', "1" * 5000, "[" * 100_000),
    *('{"annotations": [1,]}', '{"annotations": [1 2]}', '{"annotations": [1', '{"annotations": [' + "[" * 100_000),
]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
@pytest.mark.parametrize("chunk", [2, 1000])
def test_broken_texts(tmp_path: Path, text: str, chunk: int) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"a\.json.*(broken JSON|is empty)") as caught:
        read_entries(file, {"annotations": lambda entry, line: None}, chunk)
    assert "\n" not in str(caught.value)


def test_no_text_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match="cannot be read as text"):
        read_entries(tmp_path / "a.json", {})
    with pytest.raises(InputError, match="no such annotation file"):
        read_entries(tmp_path / "b.json", {})
