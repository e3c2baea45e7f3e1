// The device's per-unit code (rans_unit.h) run on the host, for tests.
#pragma once

#include "codec/rans.h"

namespace bloombee::rans {

// As encode() for a coded message; 0 where that would be raw. `plane0`, `plane1`: of fp32, whether to store them.
// Values must be aligned to their size.
size_t encode_by_lanes(const Shape& shape, const uint8_t* values, size_t stride, const Table& table, int unit_log2,
                       bool plane0, bool plane1, uint8_t* out);

// As decode() of a coded message, without its checksum.
bool decode_by_lanes(const Shape& shape, const uint8_t* message, size_t size, const Table& table, uint8_t* values,
                     size_t stride);

}  // namespace bloombee::rans
