"""A stage's core with an open seat, its frames, and what it answers."""

from __future__ import annotations

from typing import TypeVar

from bloombee.pipeline.commands import Command, Compute, Send
from bloombee.pipeline.events import Computed, Greeted, StageReceived
from bloombee.pipeline.stage import StageCore
from bloombee.pipeline.work import Outcome, Work
from bloombee.types import Kind, Lane, Priority
from bloombee.wire.messages import Commit, Cut, Fork, Forward, Group, Item, Load, Opening, Resume, Resumed, Sampling, Wire

T = TypeVar("T")
SAMPLING = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 5, -1)
PENALTY = Sampling(0.0, 0, 1.0, 0.0, 1.2, 0.0, 0.0, 5, -1)


def a_stage(*, stage: int = 0, num_stages: int = 2, num_pages: int = 8, windows: tuple[int, ...] = (0,)) -> StageCore:
    """Of one layer; pages of 4 tokens; its next stage holds nothing."""
    groups = tuple(Group(window, num_pages) for window in windows)
    core = StageCore(
        Load(1, 1, stage, stage + 1, num_stages, "m", bytes(16), (), "float32", groups, 4, 0, None, (), ()), resend_after_s=1.0
    )
    core.handle(StageReceived(Wire(1, 1, 1, stage, num_stages, 99, 64, None, None, None, (), None, False, 1, False), 0.0))
    for event in (Greeted(1, 0.0), StageReceived(Resumed(1, 1), 0.0), StageReceived(Resume(1, 1, ()), 0.0)):
        core.handle(event)
    return core


def an_item(
    sequence: int, position: int, rows: int, *, generation: int = 0, picks: int = 1, begins: Opening | Fork | None = None
) -> Item:
    """Its tokens say sequence, generation and position."""
    tokens = b"".join((sequence << 20 | generation << 10 | position + i).to_bytes(4, "little") for i in range(rows))
    if begins is None and position == 0:
        begins = an_opening(rows)
    return Item(sequence, generation, Kind.DECODE, position, tokens, picks, begins, None)


def an_opening(num_prompt_tokens: int, sampling: Sampling = SAMPLING) -> Opening:
    return Opening(num_prompt_tokens, sampling, 8, (), (), None, None)


def a_frame(frame: int, *items: Item, lane: Lane = Lane.CONTROL, epoch: int = 1) -> StageReceived:
    priority = Priority.PROMPT if lane is Lane.BULK else Priority.NOW
    return StageReceived(Forward(1, epoch, frame, 100 + frame, lane, priority, items), now=0.0)


def a_commit(*cuts: tuple[int, int, int]) -> StageReceived:
    """Of (sequence, generation, length)."""
    return StageReceived(Commit(1, 1, tuple(Cut(*cut, ()) for cut in cuts)), 0.0)


def works(commands: list[Command]) -> list[Work]:
    return [command.work for command in commands if isinstance(command, Compute)]


def messages(commands: list[Command], kind: type[T]) -> list[T]:
    return [command.message for command in commands if isinstance(command, Send) and isinstance(command.message, kind)]


def done(core: StageCore, work: Work) -> list[Command]:
    """The work gave a list of one byte string a row."""
    hidden = [b"%d" % row for row in range(work.num_rows)]
    return core.handle(Computed(Outcome(work.number, hidden=hidden, num_bytes=8 * len(hidden)), now=0.0))


def ran(core: StageCore, event: StageReceived) -> list[Command]:
    """What a frame gives once its only work is done."""
    (work,) = works(core.handle(event))
    return done(core, work)
