import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bloombee import _native
from bloombee.engine import sampler_reference

LOGITS = hnp.arrays(np.float32, st.integers(1, 150), elements=st.floats(width=32) | st.sampled_from([0.0, 1.0, -0.0, 2.0]))


@given(
    logits=LOGITS,
    temperature=st.floats(0, 1e18) | st.sampled_from([0.5, 1.0]),
    top_k=st.integers(0, 160),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**64 - 1),
)
def test_every_level_gives_the_oracles_token(logits, temperature, top_k, top_p, min_p, seed, position):
    fields = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed, "position": position}
    dtypes = (np.float64, np.uint32, np.float64, np.float64, np.uint64, np.uint64)
    columns = {name: np.array([value], dtype) for (name, value), dtype in zip(fields.items(), dtypes, strict=True)}
    expected = sampler_reference.sample_row(logits, **fields)
    before = _native.current_isa()
    try:
        for isa in _native.available_isas():
            _native.set_isa(isa)
            out = np.empty(1, np.uint32)
            _native.sample_rows(logits[None], out, **columns)
            assert out[0] == expected
    finally:
        _native.set_isa(before)
