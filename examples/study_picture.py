"""Why a detector sees what it sees: arrays, figures and the whole page, from Python.

python examples/study_picture.py runs/cells photo.jpg study/photo
"""

from __future__ import annotations

import sys
from pathlib import Path

import detrove
from detrove.study import figures, study_picture, write_study
from detrove.study.position_similarity import score_terms
from detrove.study.qkva_grid import head_numbers, qkva_grid


def main(weights: str, picture: str, folder: str) -> None:
    """Record one pass, look at one encoder block's heads and one query's scores, and write the page."""
    detector = detrove.load(weights)

    # everything that attention did, as tensors by name
    with detrove.record(detector) as seen:
        detector.predict(picture)
    for name, entry in seen.dense.items():
        print(f"{name}: A {tuple(entry.attention.shape)}")
    for name, sampled in seen.sampled.items():
        print(f"{name}: points {tuple(sampled.locations.shape)}")

    # one query and one cell, chosen as `detrove study` chooses them
    study = study_picture(detector, picture)
    for name in study.encoders:
        if name in study.seen.dense:
            grid = qkva_grid(study.seen, name)
            numbers = head_numbers(grid)
            print(f"{name}: spread {numbers.entropy.round(2)}, how differently heads look {numbers.disagreement:.2f}")
            Path(folder).mkdir(parents=True, exist_ok=True)
            figures.projections_figure(grid, "query").savefig(Path(folder) / "q.pdf")
    if study.cross in study.seen.dense:
        print(score_terms(study.seen.dense[study.cross], [study.query]).shares())

    write_study(study, folder, title=f"{Path(picture).name}: why")
    print(f"{folder}/report.html")


if __name__ == "__main__":
    main(*sys.argv[1:4])
