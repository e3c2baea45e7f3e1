// Messages of the activation codec: [rows, channels] values <-> fewer bytes. The format is docs/codec.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/rans_layout.h"
#include "codec/rans_table.h"

namespace bloombee::rans {

// A matrix in memory; rows may be apart, values of a row are not.
struct Shape {
    uint64_t rows;
    uint64_t channels;
    int dtype;
    size_t row_bytes() const { return channels * element_size(dtype); }
    size_t num_bytes() const { return rows * row_bytes(); }
};

// Most bytes that encode writes for so many bytes of values.
constexpr size_t bound(size_t num_bytes) { return num_bytes + raw_header_bytes; }

// Encodes into out [bound]; returns how many bytes. `stride` is the distance of rows in bytes. table == nullptr: raw.
// The table must be for the shape's dtype and channels. `unit_log2` 8..14: 2^that many values a unit at most.
size_t encode(const Shape& shape, const uint8_t* values, size_t stride, const Table* table, int unit_log2,
              uint8_t* out);

// Which table a message needs: its key (first 4 bytes of the digest).
enum class Need { none, table, corrupt };
Need needed_table(const uint8_t* message, size_t size, uint8_t key[4]);

// Decodes a message into `values`. nullptr: done; else what is wrong with the message, and `values` is undefined.
// Never reads outside the message or writes outside the rows. `verify` false skips the checksum (for fuzzing).
const char* decode(const Shape& shape, const uint8_t* message, size_t size, const Table* table, uint8_t* values,
                   size_t stride, bool verify = true);

// Writes the checksum of a message that is otherwise complete; table == nullptr: a raw one. check() compares it.
void seal(uint8_t* message, size_t size, const Table* table);
bool check(const uint8_t* message, size_t size, const Table* table);

}  // namespace bloombee::rans
