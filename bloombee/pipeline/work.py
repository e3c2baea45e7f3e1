"""What a stage core asks of its device, and what comes back. Plain data: no tensor library here.

The device thread (``roles/``) takes a :class:`Work`, runs the span (``engine/``) and returns an
:class:`Outcome`. The engine keeps nothing about a sequence but the KV rows in its slots: pages, positions
and the history that penalties need all arrive with the work, so a crash of the core's bookkeeping
and of the device's memory cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from bloombee.types import Epoch, Phase, PipelineId, SequenceId
from bloombee.wire.messages import Grammar, Pick, Sampling


class Pages(Struct, frozen=True, gc=False):
    """Where one group of layers has the positions of a sequence.

    Args:
        ids: position q lies in slot ``ids[(q - start) // page_size] * page_size + q % page_size``.
        start: the first position held, a multiple of page_size; 0 where layers see all positions.
        source: a page to copy into the page of the segment's first row before anything is written; it belongs to others.
        moves: from which slot to which one accepted rows of a draft go, in every layer, before that.
    """

    ids: tuple[int, ...]
    start: int = 0
    source: int | None = None
    moves: tuple[tuple[int, int], ...] = ()


class Branches(Struct, frozen=True, gc=False):
    """The rows of a segment as nodes of a tree. Nodes are numbered from 1 on; 0 is the row at position ``base - 1``.

    Args:
        base: the position of nodes that hang on 0; each of the others is one further than its parent.
        first: the node of the segment's first row; the others follow. Node n has the slot of position ``base + n - 1``.
        parents: [n] of all nodes up to the segment's last.
        tokens: [n] little-endian uint32 of these.
        picks: rows of the segment after which a token is sampled, rising.
    """

    base: int
    first: int
    parents: tuple[int, ...]
    tokens: bytes
    picks: tuple[int, ...]

    def depths(self) -> list[int]:
        """[n] of each node; 0 for those that hang on the last confirmed row."""
        depths = [-1]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths[1:]

    def path(self, node: int) -> list[int]:
        """Nodes from the root down to ``node``."""
        path = []
        while node:
            path.append(node)
            node = self.parents[node - 1]
        return path[::-1]

    def tokens_on(self, node: int) -> bytes:
        """Token ids of the nodes down to ``node``."""
        return b"".join([self.tokens[4 * one - 4 : 4 * one] for one in self.path(node)])


class Segment(Struct, frozen=True, gc=False):
    """The rows of one sequence in one microbatch.

    Args:
        position: absolute position of the first row; everything before it is in the KV pages. Of a tree, the position whose slot
            the first row has.
        tokens: [num_rows] little-endian uint32, the rows' token ids.
        num_picks: sample a token after each of the last ``num_picks`` rows, or of a tree as that says (last stage only).
        pages: one for each group of layers on the stage; they hold what its rows see, and themselves.
        sampling: of the request; None on all but the last stage.
        num_prompt_tokens: history before this index is prompt, from it on output.
        history: [position + num_rows] little-endian uint32, all token ids so far, this segment's rows included (of a tree [base],
            without its nodes); empty unless the request has a penalty or a grammar or the checkpoint rules.
        max_new_tokens, end_tokens: of the request. biases, grammar: likewise, on the last stage.
        tree: None: the rows follow each other.
    """

    sequence: SequenceId
    generation: int
    position: int
    tokens: bytes
    num_picks: int
    pages: tuple[Pages, ...]
    sampling: Sampling | None = None
    num_prompt_tokens: int = 0
    history: bytes = b""
    max_new_tokens: int = 0
    end_tokens: tuple[int, ...] = ()
    tree: Branches | None = None
    biases: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None

    @property
    def num_rows(self) -> int:
        return len(self.tokens) // 4

    def positions(self) -> Sequence[int]:
        """[num_rows] absolute."""
        tree = self.tree
        if tree is None:
            return range(self.position, self.position + self.num_rows)
        return [tree.base + depth for depth in tree.depths()[tree.first - 1 :]]

    def picked(self) -> Sequence[int]:
        """Rows after which a token is sampled, rising."""
        num_rows = self.num_rows
        return range(num_rows - min(self.num_picks, num_rows), num_rows) if self.tree is None else self.tree.picks

    def nodes(self) -> tuple[int, ...]:
        """Of each pick: the node that it is sampled after; 0 for a chain's."""
        tree = self.tree
        return (0,) * self.num_picks if tree is None else tuple([tree.first + row for row in tree.picks])


class Piece(Struct, frozen=True, gc=False):
    """Rows [start, stop) of activations that left the stage before, as they were encoded then."""

    payload: object
    start: int
    stop: int


class Work(Struct, frozen=True, gc=False):
    """One microbatch for the device: ``segments`` packed in order, rows [t, d] likewise."""

    pipeline: PipelineId
    epoch: Epoch
    number: int
    """Counts the works of one stage."""
    microbatch: int
    """The scheduler's number, for traces."""
    phase: Phase
    segments: tuple[Segment, ...]
    hidden: object | None = None
    """Handle of the activations' frame as the transport gave it, still encoded; None on stage 0. It covers the
    rows of ``hidden_rows``, which may be more than the segments' (rows already held are skipped)."""
    hidden_rows: tuple[tuple[int, int], ...] = ()
    """Per segment: [start, stop) of its rows in the frame."""
    priority: int = 0
    """types.Priority, as the frame came with it."""

    @property
    def num_rows(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def num_attended(self) -> int:
        """Pairs of a row and a token before it, cached or of the same segment, as if all layers saw everything."""
        return sum(s.num_rows * s.position + s.num_rows * s.num_rows // 2 for s in self.segments)

    @property
    def nodes(self) -> tuple[int, ...] | None:
        """Of each pick that it gives: the node that it is sampled after, 0 for a chain's. None: all are of chains."""
        if all(segment.tree is None for segment in self.segments):
            return None
        return tuple([node for segment in self.segments for node in segment.nodes()])

    @property
    def computes(self) -> Phase:
        """What it is to the device: a short prompt may have the phase of decode, to overtake others."""
        is_prompt = any(segment.position < segment.num_prompt_tokens for segment in self.segments)
        return Phase.PREFILL if is_prompt else self.phase


class Outcome(Struct, frozen=True, gc=False):
    """Exactly one of: activations for the next stage, or (last stage) picks; or neither, where it failed."""

    number: int
    hidden: object | None = None
    """Encoded frame to send; opaque to the core."""
    num_bytes: int = 0
    """Of that frame."""
    picks: tuple[Pick, ...] = ()
    failed: bool = False
    """The rows could not be computed, and could later: their sequences end, and nothing else."""
