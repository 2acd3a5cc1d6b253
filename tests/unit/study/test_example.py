"""The example of a study from Python."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import detrove
from detrove.study import figures

EXAMPLE = Path(__file__).parents[3] / "examples" / "study_picture.py"


@pytest.mark.slow
def test_it_runs(toy_detector, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "DPI", 40)
    spec = importlib.util.spec_from_file_location("study_picture_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    weights = detrove.save(toy_detector("conditional-nano"), tmp_path / "toy.safetensors")
    picture.save(tmp_path / "noise.png")
    example.main(str(weights), str(tmp_path / "noise.png"), str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "encoder.1.self_attention: A (1, 4, 9, 9)" in said
    assert "how differently heads look" in said
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "q.pdf").is_file()
