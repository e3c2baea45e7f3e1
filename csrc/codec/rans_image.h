// A table as one block of bytes that can be copied to a device: a head, then arrays at offsets from its start.
// It holds what the device's code (rans_unit.h) looks up, in the shape in which it looks it up.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/rans_table.h"

namespace bloombee::rans {

// How a lane encodes a symbol; see encode_step.
struct alignas(8) EncodeEntry {
    uint32_t entry, reciprocal;
};

// An entry of TableImage::decode: frequency | index << 16 | slot - start << 24. The index is the exponent's in its window,
// or one of these, which alone have the high bit.
constexpr uint32_t escape_index = 0x80, zero_index = 0xc0;

static BLOOMBEE_HD uint32_t index_of(uint32_t entry) { return entry >> 16 & 0xff; }

struct alignas(64) TableImage {
    uint32_t dtype, channels, row_bits, row_base, num_tables;
    uint32_t shift, inverse, channel_shift, phase, cluster;  // byte offsets of the arrays
    uint32_t size;                                           // of the whole block
    uint32_t window[max_tables];                             // low | window << 8 | has_zero << 16 | fill << 24
    EncodeEntry encode[max_tables][num_symbols];
    uint32_t decode[max_tables][256];
};

// The same, where the side that runs has it. The arrays by channel are aligned to 16 and go on to a multiple of 256.
struct UnitTables {
    const uint8_t* shift;          // by gathered position
    const uint8_t* inverse;        // channel -> gathered position, both inside the tile
    const uint8_t* channel_shift;  // by channel
    const uint8_t *phase, *cluster;
    const uint32_t* window;
    const EncodeEntry* encode;
    const uint32_t* decode;

    BLOOMBEE_HD static UnitTables of(const TableImage& image) {
        const uint8_t* const p = reinterpret_cast<const uint8_t*>(&image);
        return {p + image.shift,   p + image.inverse, p + image.channel_shift, p + image.phase,
                p + image.cluster, image.window,      image.encode[0],         image.decode[0]};
    }
};

static inline void fill_image(const SymbolTable& t, uint32_t index, TableImage& image) {
    image.window[index] = t.low | t.window << 8 | t.has_zero << 16 | static_cast<uint32_t>(t.fill) << 24;
    for (int symbol = 0; symbol < num_symbols; ++symbol)
        image.encode[index][symbol] = {t.encode[symbol], t.reciprocal[symbol]};
    for (uint32_t slot = 0; slot < 256; ++slot) {
        const uint32_t symbol = t.slot[slot], range = t.range[symbol];
        const uint32_t found = symbol == escape_symbol ? escape_index : symbol == zero_symbol ? zero_index : symbol - 1;
        image.decode[index][slot] = range >> 8 | found << 16 | (slot - (range & 0xff)) << 24;
    }
}

static inline std::vector<uint8_t> device_image(const Table& t) {
    TableImage head{};
    head.dtype = static_cast<uint32_t>(t.dtype);
    head.channels = t.channels;
    head.row_bits = static_cast<uint32_t>(t.row_bits);
    head.row_base = static_cast<uint32_t>(t.row_base);
    head.num_tables = static_cast<uint32_t>(t.tables.size());
    for (uint32_t i = 0; i < head.num_tables; ++i) fill_image(t.tables[i], i, head);
    std::vector<uint8_t> by_channel(t.shift.size());
    for (size_t c = 0; c < by_channel.size(); ++c)
        by_channel[c] = t.shift[c / tile_channels * tile_channels + t.inverse[c]];
    std::vector<uint8_t> arrays;
    const auto add = [&](const std::vector<uint8_t>& bytes) {
        const uint32_t at = static_cast<uint32_t>(sizeof head + arrays.size());
        arrays.insert(arrays.end(), bytes.begin(), bytes.end());
        return at;
    };
    head.shift = add(t.shift), head.inverse = add(t.inverse), head.channel_shift = add(by_channel);
    head.phase = add(t.phase), head.cluster = add(t.cluster);
    head.size = static_cast<uint32_t>(sizeof head + arrays.size());
    std::vector<uint8_t> image(head.size);
    std::memcpy(image.data(), &head, sizeof head);
    std::memcpy(image.data() + sizeof head, arrays.data(), arrays.size());
    return image;
}

}  // namespace bloombee::rans
