// A table as one block of bytes that can be copied to a device: a head, then arrays at offsets from its start.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/rans_table.h"

namespace bloombee::rans {

struct TableImage {
    uint32_t dtype, channels, row_bits, row_base;
    uint32_t ordered, num_tables;
    uint32_t phase, cluster, shift, order, inverse;  // byte offsets
    uint32_t size;                                   // of the whole block
    uint8_t digest[digest_bytes];
    SymbolTable tables[max_tables];

    BLOOMBEE_HD TableView view() const {
        const uint8_t* p = reinterpret_cast<const uint8_t*>(this);
        return {ordered != 0, p + phase, p + cluster, p + shift, p + order, p + inverse, tables};
    }
};

static inline std::vector<uint8_t> device_image(const Table& t) {
    TableImage head{};
    head.dtype = static_cast<uint32_t>(t.dtype);
    head.channels = t.channels;
    head.row_bits = static_cast<uint32_t>(t.row_bits);
    head.row_base = static_cast<uint32_t>(t.row_base);
    head.ordered = t.ordered;
    head.num_tables = static_cast<uint32_t>(t.tables.size());
    for (size_t i = 0; i < digest_bytes; ++i) head.digest[i] = t.digest[i];
    for (size_t i = 0; i < t.tables.size(); ++i) head.tables[i] = t.tables[i];
    std::vector<uint8_t> arrays;
    const auto add = [&](const std::vector<uint8_t>& bytes) {
        const uint32_t at = static_cast<uint32_t>(sizeof head + arrays.size());
        arrays.insert(arrays.end(), bytes.begin(), bytes.end());
        return at;
    };
    head.phase = add(t.phase), head.cluster = add(t.cluster);
    head.shift = add(t.shift), head.order = add(t.order), head.inverse = add(t.inverse);
    head.size = static_cast<uint32_t>(sizeof head + arrays.size());
    std::vector<uint8_t> image(head.size);
    std::memcpy(image.data(), &head, sizeof head);
    std::memcpy(image.data() + sizeof head, arrays.data(), arrays.size());
    return image;
}

}  // namespace bloombee::rans
