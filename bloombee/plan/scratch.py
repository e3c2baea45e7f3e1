"""Memory of a forward that is neither weights nor KV: bounds that the engine keeps, and what they come to for a plan. Pure.

Weights and KV are known exactly. What a forward needs besides grows with its rows, with the keys that they see and with the
vocabulary, and of a long prompt would be larger than both; so the engine works in parts that these bounds allow, and a plan
counts the sum.
"""

from __future__ import annotations

from bloombee.models.card import ModelCard
from bloombee.types import Dtype

SCORES = 1 << 22
"""Scores (heads x rows x keys) that attention writes out at once; those of one row at least."""
SCORE_BYTES = 16
"""Of each: as multiplied, in float32, as weights, and once more where sinks are added or the types differ."""
MASKED = 1 << 23
"""Entries (rows x keys) of a mask that torch's kernel gets at once; it widens them to the type of the queries."""
COPIED_BYTES = 64 << 20
"""Of keys and values that are copied side by side, of several sequences; those of one sequence at least."""
SPLIT_SHARE = 8
"""Of the elements that attention takes of all tokens, a GPU keeps at most a byte for so many: sums of parts of the keys."""
LOGITS = 1 << 22
"""Rows x vocabulary that are made and sampled at once; those of one row at least."""
LOGIT_BYTES = 16
"""Of each: in the type of the weights, capped or scaled, and in float32."""
LOADING_BYTES = 96 << 20
"""While a span is loaded: what is read ahead, and the part of a weight that is converted or laid out anew."""


def forward_bytes(card: ModelCard, dtype: Dtype, *, rows: int, tokens: int, is_last: bool) -> int:
    """What a stage's forward may need besides weights and KV memory, at most; nothing of a model that computes nothing.

    Args:
        rows: of one microbatch, at most. tokens: that its KV memory holds. is_last: it makes logits.
    """
    if not card.row_elements:
        return 0
    length, wide = min(card.max_positions, tokens), dtype.num_bytes
    scores = min(card.num_heads * rows * length, max(SCORES, card.num_heads * length)) * SCORE_BYTES
    masks = rows * length + min(rows * length, MASKED) * wide
    copies = min(card.attended_elements * tokens * wide, max(COPIED_BYTES, card.attended_elements * length * wide))
    if card.is_latent:  # computed anew from all that the rows' sequences hold, rotated and put together
        copies = 2 * card.attended_elements * tokens * wide
    sums = card.attended_elements * tokens // SPLIT_SHARE
    logits = min(rows * card.vocab_size, max(LOGITS, card.vocab_size)) * LOGIT_BYTES * is_last
    return rows * card.row_elements * wide + max(scores + masks + copies, sums, logits)
