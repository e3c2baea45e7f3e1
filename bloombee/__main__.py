"""``python -m bloombee``: the command line."""

from bloombee.cli import main

if __name__ == "__main__":
    main()
