from hypothesis import given
from hypothesis import strategies as st

from bloombee import _native
from bloombee.codec.planes import join_planes, split_planes


@given(st.sampled_from([1, 2, 4]), st.binary(max_size=2000))
def test_every_level_gives_the_same_planes_and_joins_them(element_bytes, raw):
    data = raw[: len(raw) // element_bytes * element_bytes]
    expected = b"".join(data[k::element_bytes] for k in range(element_bytes))
    before = _native.current_isa()
    try:
        for isa in _native.available_isas():
            _native.set_isa(isa)
            planes, back = bytearray(len(data)), bytearray(len(data))
            split_planes(data, planes, element_bytes=element_bytes)
            join_planes(planes, back, element_bytes=element_bytes)
            assert planes == expected
            assert back == data
    finally:
        _native.set_isa(before)
