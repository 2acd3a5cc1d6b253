"""Arms that run, fail, stop and go on; what is made of their numbers; the page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from detrove.errors import InputError
from detrove.evaluation import METRIC_NAMES, evaluate
from detrove.inference import load
from detrove.study import Comparison, compare
from detrove.study.arm_process import main
from detrove.study.arms import Arm, ArmRecord, Conditions, begin, key_of, run_arms
from detrove.study.compare_page import _trunk, about_course, bargaining, comparison_page, curve, verdict
from detrove.study.queries import QueryStudy

MODELS = ["detr-nano", "conditional-nano"]


@pytest.fixture(scope="module")
def compared(scenes: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two arms in processes of their own."""
    return compare(scenes, MODELS, tmp_path_factory.mktemp("compared") / "toys", **tiny)


@pytest.mark.slow
def test_every_arm_is_an_ordinary_run_measured(compared: Comparison, scenes: Path) -> None:
    assert [summary.name for summary in compared.summaries] == MODELS
    assert compared.failed == []
    for record in compared.records:
        assert {"config.yaml", "best.safetensors", "metrics.jsonl", "report.html"} <= {
            file.name for file in record.run.iterdir()
        }
        assert record.trained is not None
        assert record.measured is not None
        measured = evaluate(record.run, scenes)
        assert record.trained["best"] == {name: pytest.approx(measured[name]) for name in METRIC_NAMES}
        assert 50e6 < record.trained["memory"] < 20e9
        assert 0 < record.measured["latency"] < 60
        model = load(record.run).model
        assert record.measured["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert QueryStudy.load(record.queries).num_queries == 8


@pytest.mark.slow
def test_numbers_and_page_are_written(compared: Comparison, scenes: Path) -> None:
    assert {file.name for file in compared.output.iterdir()} == {"arms", "report.html", "comparison.json"}
    numbers = json.loads((compared.output / "comparison.json").read_text())
    assert numbers == json.loads(json.dumps(compared.to_json()))
    assert [arm["name"] for arm in numbers["arms"]] == MODELS
    [seed] = numbers["arms"][0]["seeds"]
    assert [line["epoch"] for line in seed["course"]] == [1]
    assert (compared.output / seed["run"] / "best.safetensors").is_file()
    page = (compared.output / "report.html").read_text(encoding="utf-8")
    assert str(scenes.parent) not in page


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_and_seeds_may_be_added(
    compared: Comparison, scenes: Path, tiny: dict[str, Any], arms_here: list[str]
) -> None:
    again = compare(scenes, MODELS, compared.output, **tiny)
    assert arms_here == []
    assert again.to_json() == compared.to_json()
    more = compare(scenes, MODELS[:1], compared.output, seeds=[0, 1], **tiny)
    assert arms_here == ["detr-nano-seed1"]
    assert [len(summary.records) for summary in more.summaries] == [2]


@pytest.mark.slow
def test_other_options_are_refused(compared: Comparison, scenes: Path, tiny: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"detr-nano-seed0\.json: this arm was begun otherwise: epochs was 1, now 2"):
        compare(scenes, MODELS, compared.output, **{**tiny, "epochs": 2})


@pytest.mark.slow
def test_an_arm_that_is_told_to_stop_saves_and_is_continued(
    scenes: Path, tiny: dict[str, Any], tmp_path: Path, open_input: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = Conditions(str(scenes), epochs=500, size=64, batch_size=4, backbone_weights=None, seconds=0.01)
    conditions.settings.update(tiny["settings"])
    [record] = begin([Arm("detr-nano", "detr-nano")], conditions, tmp_path / "out")
    from detrove.training.trainer import Trainer

    end_epoch = Trainer._end_epoch

    def stop_in_the_second(trainer: Trainer, number: int, losses: dict[str, float]) -> None:
        end_epoch(trainer, number, losses)
        if number == 2:
            open_input.close_now()
            deadline = time.monotonic() + 20
            while not trainer.interruption.requested and time.monotonic() < deadline:
                time.sleep(0.01)

    monkeypatch.setattr(Trainer, "_end_epoch", stop_in_the_second)
    assert main([str(record.path)]) == 130
    stopped = ArmRecord.read(record.path)
    assert not stopped.finished
    assert stopped.error is None
    assert [line["epoch"] for line in stopped.history] == [1, 2]

    monkeypatch.setattr(Trainer, "_end_epoch", end_epoch)
    monkeypatch.setattr("sys.stdin", type(open_input)())
    file = json.loads(record.path.read_text())
    file["conditions"]["epochs"] = 3
    record.path.write_text(json.dumps(file))
    assert main([str(record.path)]) == 0
    assert ArmRecord.read(record.path).finished
    assert [line["epoch"] for line in record.history] == [1, 2, 3]


CHILD = """
import os, sys, time
from pathlib import Path
print("begun", flush=True, file=sys.stderr)
while os.read(0, 1):
    pass
Path(sys.argv[1]).write_text("saved")
sys.exit(130)
"""


def test_ctrl_c_reaches_an_arm_as_the_end_of_its_input(tmp_path: Path) -> None:
    program = f"""
        import signal, sys
        from detrove.study.arms import run_process
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
        try:
            run_process([sys.executable, "-c", {CHILD!r}, {str(tmp_path / "mark")!r}])
        except KeyboardInterrupt:
            sys.exit(7)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    assert parent.stderr.readline() == "begun\n"
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=60) == 7
    assert (tmp_path / "mark").read_text() == "saved"


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def conditions_for(scenes: Path, **changes: Any) -> Conditions:
    return Conditions(str(scenes), **{"epochs": 1, **changes})


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        ([Arm("a", "detr-nan")], {}, "unknown model 'detr-nan': did you mean"),
        ([Arm("a", "detr-nano"), Arm("A", "dab-nano")], {}, "a, seed 0: named twice|A, seed 0: named twice"),
        ([Arm("a", "detr-nano", settings={"model.heads": 2})], {}, "unknown setting 'model.heads'"),
        ([Arm("a", "dab-nano", settings={"model.num_coordinates": 2})], {}, "modulate needs an anchor's width"),
        ([Arm("a", "detr-nano")], {"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    scenes: Path, tmp_path: Path, arms: list[Arm], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        begin(arms, conditions_for(scenes, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_budget_is_needed_and_one_only(scenes: Path, tmp_path: Path) -> None:
    for budget in ({}, {"epochs": 1, "minutes": 1.0}):
        with pytest.raises(InputError, match="one budget"):
            compare(scenes, MODELS, tmp_path, **budget)


def test_no_data_no_models_and_a_folder_of_other_things(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data set"):
        compare(tmp_path / "nowhere", MODELS, tmp_path / "out", epochs=1)
    with pytest.raises(InputError, match="at least one model"):
        compare(scenes, [], tmp_path / "out", epochs=1)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no comparison"):
        compare(scenes, MODELS, tmp_path, epochs=1)


def test_a_file_that_is_none_of_ours(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "arms").mkdir()
    for text in ("{", "[]", '{"arm": {"color": 1}}'):
        (tmp_path / "arms" / "detr-nano-seed0.json").write_text(text)
        with pytest.raises(InputError, match=r"detr-nano-seed0\.json: not what a comparison left"):
            begin([Arm("detr-nano", "detr-nano")], conditions_for(scenes), tmp_path)


def test_an_arm_that_fails_does_not_end_the_others(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fails with a line, one is killed, one needs the first one's queries, one finishes."""
    arms = [Arm("a", "detr-nano"), Arm("b", "detr-nano"), Arm("c", "detr-nano", queries_from="a"), Arm("d", "dab-nano")]
    records, told = begin(arms, conditions_for(scenes), tmp_path), []

    def process(command: list[str]) -> int:
        record = ArmRecord.read(Path(command[3]))
        if record.arm.name == "a":
            record.write(error="the loss became nan")
            return 2
        if record.arm.name == "b":
            return -9
        record.write(trained={}, measured={})
        return 0

    monkeypatch.setattr("detrove.study.arms.run_process", process)
    done = run_arms(records, progress=False, tell=told.append)
    assert [record.finished for record in done] == [False, False, False, True]
    assert [record.error for record in done[:3]] == [
        "the loss became nan",
        "its process ended with signal 9 (9 is what a machine out of memory sends)",
        "a, whose queries it begins with, has failed",
    ]
    assert "arm 1 of 4: a, seed 0 failed: the loss became nan" in told
    with pytest.raises(InputError, match="3 of 4 arms failed: a, seed 0: the loss became nan; b"):
        Comparison(tmp_path, tuple(done)).refuse_failures()


# ---- what is made of the numbers -------------------------------------------------------------------------------------

MakeArm = Callable[..., ArmRecord]


@pytest.fixture
def make_arm(tmp_path: Path, scenes: Path) -> MakeArm:
    """A finished arm, as its process would leave it; `course` is (minutes, AP or None) epoch by epoch."""

    def make(name: str, seed: int, course: list[tuple[float, float | None]], memory: int | None = 2**30) -> ArmRecord:
        path = tmp_path / "arms" / f"{key_of(name, seed)}.json"
        arm = Arm(name, "detr-nano", seed)
        best = dict.fromkeys(METRIC_NAMES, max(ap for _, ap in course if ap is not None)) | {"ap_large": None}
        lines = []
        for epoch, (minutes, ap) in enumerate(course, start=1):
            line = {"epoch": epoch, "step": 10 * epoch, "minutes": minutes, "pictures": 40 * epoch, "loss": 1.0}
            watch = {"changed_since_last": None if epoch == 1 else 1 / epoch}
            validated = dict.fromkeys(METRIC_NAMES, ap) | {"ap_large": None, "watch": watch}
            lines.append(line if ap is None else line | validated)
        (path.with_suffix("")).mkdir(parents=True)
        (path.with_suffix("") / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        measured = {"latency": 0.01 * (seed + 1), "latency_p95": 0.03, "throughput": 50.0, "parameters": 2_500_000}
        measured |= {"multiply_adds": 3 * 10**9, "height": 64, "width": 64, "processor": "one", "threads": 2}
        record = ArmRecord(
            path,
            arm,
            conditions_for(scenes, epochs=len(course)),
            trained={"best": best, "memory": memory, "memory_kind": "resident"},
            measured=measured | {"torch": "2", "detrove": "0"},
        ).write()
        generator = np.random.default_rng(seed)
        QueryStudy(
            boxes=generator.random((2, 4, 4), dtype=np.float32),
            scores=generator.random((2, 4), dtype=np.float32),
            answers=np.array([[0, 1], [0, 2]]),
            found=np.array([[False, False], [True, False]]),
            duplicates=np.array([[0, 0], [1, 0]]),
            pictures=np.array([0, 1]),
            objects=generator.random((2, 4), dtype=np.float32),
            image_ids=np.array(["a", "b"]),
        ).save(record.queries)
        return record

    return make


def test_means_and_ranks_of_seeds(make_arm: MakeArm, tmp_path: Path) -> None:
    records = [
        make_arm("slow", 0, [(1.0, 0.1), (2.0, 0.2)]),
        make_arm("fast", 0, [(1.0, 0.3), (2.0, 0.4)], memory=3 * 2**30),
        make_arm("slow", 1, [(1.5, 0.2), (3.0, 0.4)], memory=None),
        make_arm("fast", 1, [(1.0, 0.4), (2.0, 0.6)]),
    ]
    found = Comparison(tmp_path, tuple(records))
    fast, slow = found.ranked()
    assert (fast.name, slow.name) == ("fast", "slow")
    assert (slow.mean("ap"), slow.minutes, slow.epochs) == pytest.approx((0.3, 2.5, 2))
    assert slow.mean("ap_large") is None
    assert (slow.memory, fast.memory) == (2**30, 3 * 2**30)
    assert slow.measured("latency") == pytest.approx(0.015)


def test_a_curve_is_the_mean_of_its_seeds_where_all_are_known(make_arm: MakeArm, tmp_path: Path) -> None:
    records = [
        make_arm("a", 0, [(1.0, 0.0), (2.0, 0.2), (3.0, 0.4)]),
        make_arm("a", 1, [(2.0, 0.4), (3.0, None), (4.0, 0.8)]),
    ]
    [summary] = Comparison(tmp_path, tuple(records)).summaries
    line = curve(summary, "minute")
    assert line.x == [2.0, 3.0]
    assert line.y == pytest.approx([0.3, 0.5])  # the second seed is half-way from 0.4 to 0.8 at minute 3
    assert line.low == pytest.approx([0.2, 0.4])
    assert line.high == pytest.approx([0.4, 0.6])
    assert curve(summary, "epoch").x == [1, 2, 3]


def test_seeds_that_were_never_validated_at_the_same_time_are_one_point(make_arm: MakeArm, tmp_path: Path) -> None:
    records = [make_arm("a", 0, [(1.0, 0.2)]), make_arm("a", 1, [(3.0, 0.4)])]
    [summary] = Comparison(tmp_path, tuple(records)).summaries
    line = curve(summary, "minute")
    assert (line.x, line.y) == ([2.0], pytest.approx([0.3]))


def test_how_long_queries_bargain(make_arm: MakeArm, tmp_path: Path) -> None:
    records = [make_arm("a", 0, [(1.0, 0.1), (2.0, 0.1), (3.0, 0.1)]), make_arm("b", 0, [(1.0, 0.2)])]
    first, second = Comparison(tmp_path, tuple(records)).summaries
    line = bargaining(first)
    assert line is not None
    assert (line.x, line.y) == ([2, 3], pytest.approx([1 / 2, 1 / 3]))
    assert bargaining(second) is None


def test_the_verdict_says_what_can_be_known(make_arm: MakeArm, tmp_path: Path) -> None:
    def said(*arms: tuple[str, int, float]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        records = [make_arm(f"{name} {folder.name}", seed, [(1.0, ap)]) for name, seed, ap in arms]
        return verdict(Comparison(folder, tuple(records)))

    assert "none of them detects anything yet" in said(("a", 0, 0.001), ("b", 0, 0.002))
    assert "differences are luck" in said(("c", 0, 0.2), ("d", 0, 0.3))
    assert "Their seeds overlap" in said(("e", 0, 0.2), ("e", 1, 0.4), ("f", 0, 0.3), ("f", 1, 0.31))
    assert "Every seed of the first" in said(("g", 0, 0.2), ("g", 1, 0.4), ("h", 0, 0.1), ("h", 1, 0.1))
    assert said(("i", 0, 0.2)).endswith("AP 0.200.")


def test_who_is_first_is_told(make_arm: MakeArm, tmp_path: Path) -> None:
    records = [make_arm("a", 0, [(1.0, 0.1), (2.0, 0.4)]), make_arm("b", 0, [(2.0, 0.3), (4.0, 0.3)])]
    summaries = Comparison(tmp_path, tuple(records)).summaries
    assert "reached first by b, at epoch 1, last by a, at 2." in about_course(summaries, "epoch")
    late = [make_arm("c", 0, [(1.0, 0.1), (2.0, 0.4)]), make_arm("d", 0, [(2.0, 0.1), (4.0, 0.1)])]
    assert "reached first by c, at minute 2; never by d." in about_course(
        Comparison(tmp_path, tuple(late)).summaries, "minute"
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.captions, self.text, self.inside = 0, "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.captions += tag == "figcaption"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_interruption_ends_all_and_leaves_a_page_of_what_is_finished(
    make_arm: MakeArm, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_arm("detr-nano", 0, [(1.0, 0.2)])
    monkeypatch.setattr("detrove.study.arms.run_process", lambda command: 130)
    with pytest.raises(KeyboardInterrupt):
        compare(scenes, ["detr-nano", "dab-nano"], tmp_path, epochs=1, backbone_weights="pretrained", progress=False)
    assert "dab-nano, seed 0: not run to its end yet" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [arm["name"] for arm in json.loads((tmp_path / "comparison.json").read_text())["arms"]] == ["detr-nano"]


def test_the_page_has_all_its_figures_and_tells_failures(make_arm: MakeArm, tmp_path: Path, scenes: Path) -> None:
    records = [
        make_arm("a", 0, [(1.0, 0.1), (2.0, 0.4)]),
        make_arm("b <i>", 0, [(2.0, 0.3), (4.0, 0.3)], memory=None),
        ArmRecord(tmp_path / "arms" / "c.json", Arm("c", "dab-nano", 0), conditions_for(scenes), error="no memory"),
    ]
    content = comparison_page(Comparison(tmp_path, tuple(records))).to_html()
    tags = Tags()
    tags.feed(content)
    for text in ("b <i>", "1,024 MiB", "c, seed 0: no memory", "Their queries", "2.50 M", "0.400"):
        assert text in tags.text, text
    assert content.count("<svg") == 9
    assert content.count("<img") == 2
    assert tags.captions == 9 + 2 + 2
    assert "https:" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", content)
    assert os.fspath(tmp_path) not in content


def test_arms_without_weights_for_their_trunk_are_named(tmp_path: Path) -> None:
    def record(name: str, had: bool | None) -> Any:
        trained = None if had is None else {"trunk_had_weights": had}
        return SimpleNamespace(arm=SimpleNamespace(key=name), trained=trained)

    both = [record("detr 0", True), record("dab 0", True)]
    assert _trunk("pretrained", both) == "timm's ImageNet weights"
    assert _trunk("pretrained", [record("detr 0", False)]).startswith("random weights")
    assert "but random ones in dab 0" in _trunk("pretrained", [both[0], record("dab 0", False)])
    assert _trunk(None, both) == "random weights"
    assert _trunk("weights/a.safetensors", both) == "a.safetensors"
