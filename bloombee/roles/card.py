"""What the head knows of a model: the card that ``engine/describe.py`` makes, as plain data without torch."""

from __future__ import annotations

