"""The diagnosis as a page: every finding, and the pictures at fault with their boxes drawn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

from detrove.data.doctor.check import Diagnosis
from detrove.data.doctor.findings import Finding, Place, Rectangle
from detrove.data.doctor.telling import place_in, summary
from detrove.drawing import SKY, VERMILION, Mark, draw_marks
from detrove.errors import InputError
from detrove.pictures import read_picture
from detrove.reporting import Page

PICTURES = 6
"""Pictures drawn for a finding."""
LINES = 20
"""Places listed for a finding."""
LONGER = 480
_MARGIN = 0.25
_ANNOTATED = 40
_TAGGED = 6
_LEGEND = [(VERMILION, False, "at fault"), (SKY, True, "other boxes of the picture")]


def make_page(diagnosis: Diagnosis) -> str:
    """A self-contained HTML page."""
    faults, remarks = diagnosis.of("fault"), diagnosis.of("remark")
    page = Page(f"What is wrong with {diagnosis.path.resolve().name}", _lead(diagnosis))
    page.numbers(
        {
            "kinds of faults": len(faults),
            "remarks": len(remarks),
            "pictures": diagnosis.num_pictures,
            "decoded": diagnosis.num_looked,
            "boxes": diagnosis.num_boxes,
        }
    )
    if diagnosis.findings:
        rows = [[finding.kind, finding.severity, finding.amount, finding.meaning] for finding in diagnosis.findings]
        page.table(["finding", "", "how many", "what it means for training"], rows)
    for finding in diagnosis.findings:
        _add_finding(page, finding, diagnosis)
    return page.to_html()


def _lead(diagnosis: Diagnosis) -> str:
    faults = diagnosis.of("fault")
    found = f"{len(faults)} kinds of faults" if len(faults) != 1 else "one kind of fault"
    return f"{summary(diagnosis)}. The doctor found {found if faults else 'no fault'}."


def _add_finding(page: Page, finding: Finding, diagnosis: Diagnosis) -> None:
    page.section(f"{finding.kind[0].upper()}{finding.kind[1:]}: {finding.amount}", finding.meaning)
    page.paragraph(f"What to do: {finding.remedy}")
    page.bullets([place_in(place, diagnosis.path) for place in finding.places[:LINES]])
    if len(finding.places) > LINES:
        more = max(finding.count, len(finding.places)) - LINES
        page.paragraph(f"And {more:,} more: see detrove data check --json.")
    drawn = list(_drawn(finding, diagnosis))
    if drawn:
        if any(place.boxes for place in finding.places):
            page.legend(_LEGEND)
        page.pictures(drawn)


def _drawn(finding: Finding, diagnosis: Diagnosis) -> Iterable[tuple[Image.Image, str]]:
    """The first pictures of a finding that can be read, each once, with all its places in it."""
    by_picture: dict[Path, list[Place]] = {}
    for place in finding.places:
        if place.picture is not None:
            by_picture.setdefault(place.picture, []).append(place)
    number = 0
    for path, places in by_picture.items():
        if number == PICTURES:
            return
        try:
            picture = _one_picture(path, places, diagnosis)
        except InputError:  # which is what the finding is about
            continue
        number += 1
        yield picture, "; ".join(dict.fromkeys(place_in(place, diagnosis.path) for place in places[:3]))


def _one_picture(path: Path, places: list[Place], diagnosis: Diagnosis) -> Image.Image:
    picture = read_picture(path)
    if places[0].other is not None:
        return _side_by_side(read_picture(places[0].other), picture)
    tagged = len(places) <= _TAGGED
    wrong = [Mark(box, VERMILION, place.entry if tagged else "") for place in places for box in place.boxes]
    others = [Mark(box, SKY, dashed=True) for box in _boxes_of(path, places[0].split, diagnosis)]
    at_fault = {mark.box_xyxy for mark in wrong}
    marks = [*(mark for mark in others if mark.box_xyxy not in at_fault), *wrong][-_ANNOTATED:]
    return _with_room(picture, marks)


def _boxes_of(path: Path, split: str, diagnosis: Diagnosis) -> list[Rectangle]:
    annotations = diagnosis.splits.get(split)
    if annotations is None:
        return []
    picture = next((index for index, each in enumerate(annotations.paths) if each == str(path)), None)
    if picture is None:
        return []
    boxes = annotations.xywh[annotations.boxes_of(picture)].tolist()
    return [(x, y, x + w, y + h) for x, y, w, h in boxes if w > 0 and h > 0]


def _with_room(picture: Image.Image, marks: list[Mark]) -> Image.Image:
    """The picture with its marks; where one leaves it, on a grey ground that shows where to."""
    width, height = picture.size
    most = round(_MARGIN * max(picture.size))
    decisive = [mark for mark in marks if not mark.dashed] or marks
    margin = most if any(_leaves(mark.box_xyxy, width, height) for mark in decisive) else 0
    canvas = ImageOps.expand(picture, margin, fill=(128, 128, 128)) if margin else picture
    moved = []
    for mark in marks:
        x1, y1, x2, y2 = (value + margin for value in mark.box_xyxy)
        first = _within(x1, canvas.width), _within(y1, canvas.height)
        last = _within(x2, canvas.width), _within(y2, canvas.height)
        moved.append(Mark((*first, *last), mark.colour, mark.text, mark.dashed))
    return draw_marks(canvas, moved, LONGER)


def _leaves(box: Rectangle, width: int, height: int) -> bool:
    return max(-box[0], -box[1], box[2] - width, box[3] - height) > 1


def _within(value: float, size: int) -> float:
    return min(max(value, 0.0), size - 1.0)


def _side_by_side(first: Image.Image, second: Image.Image) -> Image.Image:
    height = LONGER // 2
    parts = [each.resize((max(1, round(each.width * height / each.height)), height)) for each in (first, second)]
    canvas = Image.new("RGB", (sum(part.width for part in parts) + 8, height), (128, 128, 128))
    canvas.paste(parts[0], (0, 0))
    canvas.paste(parts[1], (parts[0].width + 8, 0))
    return canvas
