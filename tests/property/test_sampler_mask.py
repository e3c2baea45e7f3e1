"""A mask of allowed tokens: the kernel picks as the oracle does of a row where all others are -inf."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bloombee import _native
from bloombee.engine import sampler_reference
from bloombee.engine.sampler import masked

ROWS = st.integers(1, 300).flatmap(
    lambda size: st.tuples(
        hnp.arrays(np.float32, size, elements=st.floats(width=32) | st.sampled_from([0.0, 1.0, -0.0, 2.0])),
        hnp.arrays(np.bool_, size) | st.integers(0, size - 1).map(lambda only: np.arange(size) == only),
    )
)


def bits(allowed):
    """[ceil(v / 64)] uint64, with what lies beyond the row set: it is nobody's."""
    padded = np.ones(-(-len(allowed) // 64) * 64, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


@given(
    row=ROWS,
    temperature=st.floats(0, 1e18) | st.sampled_from([0.0, 0.5, 1.0]),
    top_k=st.integers(0, 310),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**64 - 1),
)
def test_every_level_picks_of_what_is_allowed_as_the_oracle_does(row, temperature, top_k, top_p, min_p, seed, position):
    logits, allowed = row
    fields = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed, "position": position}
    dtypes = (np.float64, np.uint32, np.float64, np.float64, np.uint64, np.uint64)
    columns = {name: np.array([value], dtype) for (name, value), dtype in zip(fields.items(), dtypes, strict=True)}
    only = np.where(allowed, logits, np.float32(-np.inf))
    assert np.array_equal(masked(logits, bits(allowed)), only, equal_nan=True)
    expected = sampler_reference.sample_row(only, **fields)
    before = _native.current_isa()
    try:
        for isa in _native.available_isas():
            _native.set_isa(isa)
            out = np.empty(1, np.uint32)
            _native.sample_rows(logits[None], out, masks=bits(allowed)[None], **columns)
            assert out[0] == expected
    finally:
        _native.set_isa(before)
