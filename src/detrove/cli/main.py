"""The command line: `detrove VERB …`. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from detrove.cli.bench import bench
from detrove.cli.compare import compare
from detrove.cli.convert import convert
from detrove.cli.data import make_data_app
from detrove.cli.demo import demo
from detrove.cli.eval import evaluate_weights
from detrove.cli.experiment import experiment
from detrove.cli.export import export_weights
from detrove.cli.models import models
from detrove.cli.predict import predict
from detrove.cli.serve import serve
from detrove.cli.study import study
from detrove.cli.train import train
from detrove.errors import InputError

HELP = """Detection transformers: train one on your own pictures, measure it, use it.

Start with the first line; DATA is a folder labelled as COCO, VOC, YOLO or CSV.

  detrove demo                                     everything, in minutes
  detrove train DATA --output runs/my --minutes 10
  detrove eval runs/my DATA                        how good is it?
  detrove predict runs/my PHOTOS --output found    what does it see?
  detrove study runs/my PHOTO                      why does it see that?

detrove VERB --help explains a verb and its options.
"""

DONE, OUR_FAULT, USERS_FAULT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
AFTER_THE_FIRST = 5.0
"""Seconds in which a launcher ends its processes when one has ended; torchrun looks ten times a second."""
BEYOND_US = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS})
BEYOND_US |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Faults that a user can mend: no room on the disk, no permission; a place below a file, a folder, a name too long."""


def make_app() -> App:
    """The application with all its verbs."""
    app = App(
        name="detrove",
        help=HELP,
        help_format="plaintext",
        version=lambda: f"detrove {version('detrove')}",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    verbs = {
        "demo": demo,
        "train": train,
        "eval": evaluate_weights,
        "predict": predict,
        "compare": compare,
        "experiment": experiment,
        "study": study,
        "convert": convert,
        "models": models,
        "export": export_weights,
        "serve": serve,
        "bench": bench,
    }
    for place, (name, verb) in enumerate(verbs.items()):
        app.command(verb, name=name, sort_key=place, help_format="markdown")
    app.command(make_data_app(place=len(verbs)))
    app.register_install_completion_command(help="Let the Tab key complete verbs and options.")
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own, and answer its exit status.

    0 done; 2 the user's input is at fault, said in one line on standard error; 130 interrupted. Any other exception is
    our fault: it leaves here with its traceback, and Python exits with 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names of files that are no text
    try:
        make_app()(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("detrove: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Standard output is flushed once more at exit, which must not fail then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in BEYOND_US:
            raise
        return _refuse(f"{error.filename or 'writing'}: {error.strerror}")
    return DONE


def _refuse(message: str) -> int:
    """Say in one line what is wrong with the input; of several processes on a machine the first does, if it can.

    What is wrong is mostly wrong for all of them. A launcher ends the others when one has ended, so that they only come
    to say what they alone have met.
    """
    if int(os.environ.get("LOCAL_RANK", 0)):
        time.sleep(AFTER_THE_FIRST)
    print(f"detrove: error: {' '.join(message.split())}", file=sys.stderr)
    return USERS_FAULT
