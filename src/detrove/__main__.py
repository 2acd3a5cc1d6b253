"""`python -m detrove`: the command line, also for launchers that start a module, such as torchrun."""

import sys

from detrove.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
