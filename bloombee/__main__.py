"""``python -m bloombee``: the command line."""

import sys

from bloombee.cli import main

if __name__ == "__main__":
    sys.exit(main())
