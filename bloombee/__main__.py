"""``python -m bloombee``: the command line."""

import os
import sys

import bloombee
from bloombee.paths import code_paths

if __name__ == "__main__":
    # -m puts the current folder first: from here on it gives no code. What the package itself imports first it may have given;
    # the command bloombee, and python -P, never look there.
    sys.path[:] = code_paths(sys.path, os.path.dirname(bloombee.__path__[0]))
    from bloombee.cli import main

    sys.exit(main())
