"""The frame of the command line: help at once, errors in one line, honest exit statuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import detrove
from detrove.cli import main
from detrove.data.scenes import make_scenes
from detrove.errors import InputError


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from detrove.cli.main import run; status = run(['--help']);"
        "heavy = {'torch', 'torchvision', 'timm', 'accelerate', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules);"
        "print(status, sorted(heavy))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "0 []"


def test_the_first_screen_says_what_to_do_first(detrove_command: Callable) -> None:
    answer = detrove_command()
    assert answer.status == 0
    for line in ("detrove demo", "detrove train DATA", "detrove eval", "detrove predict"):
        assert line in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 80
    assert len(answer.out.splitlines()) <= 32


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("demo", ["--output", "--minutes"]),
        ("train", ["--output", "--json", "--resume"]),
        ("eval", ["--output", "--json", "--split"]),
        ("predict", ["--output", "--json", "--threshold"]),
        ("convert", ["--model", "--to", "--json"]),
        ("models", ["--json"]),
    ],
)
def test_every_verb_explains_itself_and_its_options(detrove_command: Callable, verb: str, options: list[str]) -> None:
    answer = detrove_command(verb, "--help")
    assert answer.status == 0
    assert answer.out.startswith(f"Usage: detrove {verb}")
    assert [option for option in options if option not in answer.out] == []


def test_version(detrove_command: Callable) -> None:
    assert detrove_command("--version").out == f"detrove {detrove.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predcit"], '"predict"'),
        (["predict"], "WEIGHTS"),
        (["predict", "w.safetensors"], "SOURCE"),
        (["predict", "w", "a.jpg", "--treshold", "0.5"], "--threshold"),
        (["predict", "w", "a.jpg", "--threshold", "half"], "half"),
        (["train", "d", "--epochs", "1.5x"], "1.5x"),
        (["models", "a", "b"], "b"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(detrove_command: Callable, arguments: list[str], message: str) -> None:
    answer = detrove_command(*arguments)
    assert answer.status == 2
    assert answer.out == ""
    [line] = answer.err.splitlines()
    assert line.startswith("detrove: error: ")
    assert message in line


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes every command line raise."""

    def fail_with(error: BaseException) -> None:
        def app(arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr(main, "make_app", lambda: app)

    return fail_with


def test_input_errors_are_one_line_whatever_they_say(detrove_command: Callable, failing: Callable) -> None:
    failing(InputError("a.jpg: broken\n  in two lines"))
    answer = detrove_command()
    assert (answer.status, answer.err) == (2, "detrove: error: a.jpg: broken in two lines\n")


def test_a_full_disk_is_one_line(detrove_command: Callable, failing: Callable) -> None:
    failing(OSError(28, "No space left on device", "runs/a/b.png"))
    answer = detrove_command()
    assert (answer.status, answer.err) == (2, "detrove: error: runs/a/b.png: No space left on device\n")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("ours"), RuntimeError("ours")])
def test_our_own_faults_keep_their_traceback(failing: Callable, error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)):
        main.run([])


def test_our_own_faults_exit_with_1() -> None:
    code = "from detrove.cli import main; main.make_app = lambda: [][0]; raise SystemExit(main.run([]))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr


def test_an_interrupt_is_130(detrove_command: Callable, failing: Callable) -> None:
    failing(KeyboardInterrupt())
    answer = detrove_command()
    assert (answer.status, answer.err) == (130, "detrove: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_a_reader_that_leaves_is_met_with_silence() -> None:
    code = (
        "import sys; from detrove.cli import main;"
        "main.make_app = lambda: lambda arguments: print('a long answer ' * 10_000);"
        "sys.exit(main.run([]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert error == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_options(shell: str) -> None:
    script = main.make_app().generate_completion(shell=shell)  # pyright: ignore[reportArgumentType]
    assert "predict" in script
    assert "threshold" in script


def test_a_place_below_a_file_is_one_line(detrove_command: Callable, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    data = make_scenes(tmp_path / "scenes", {"train": 2, "val": 2, "test": 2})
    answer = detrove_command("data", "convert", data, "--to", "coco", "--output", tmp_path / "afile" / "x")
    assert answer.status == 2
    assert re.search(r"^detrove: error: .*afile.*Not a directory$", answer.err, re.MULTILINE)
