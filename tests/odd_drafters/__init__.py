"""Programs in the place of a drafter's process; see ``program.py``."""
