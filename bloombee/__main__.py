"""The command ``bloombee``, and ``python -m bloombee``."""

import os
import signal
import sys

import bloombee
from bloombee.paths import code_paths


def run() -> int:
    """The command line. Ctrl-C while that is imported ends the process as it ends any other, without a traceback."""
    heeded = signal.getsignal(signal.SIGINT)
    if heeded is signal.default_int_handler:  # else somebody has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bloombee.cli import main

    signal.signal(signal.SIGINT, heeded)
    return main()


if __name__ == "__main__":
    # -m puts the current folder first: from here on it gives no code. What the package itself imports first it may have given;
    # the command bloombee, and python -P, never look there.
    sys.path[:] = code_paths(sys.path, os.path.dirname(bloombee.__path__[0]))
    sys.exit(run())
