// Where everything is in a coded message: computed from its shape and its table, never read from it.
// Host and device. docs/codec.md sections 2 and 3.
#pragma once

#include "codec/rans_lane.h"

namespace bloombee::rans {

constexpr int version = 1;
constexpr int raw_header_bytes = 8;
constexpr int coded_header_bytes = 12;
constexpr int min_coded_values = 128;  // smaller messages are raw; vector loads may start this far before a unit
constexpr int default_unit_log2 = 14;
constexpr int directory_entry_bytes = 4;
constexpr uint32_t raw_unit = 0x3fff;  // as the number of escapes

static constexpr BLOOMBEE_HD uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

// Lanes of a message of n values: fewer for small ones, each costs about half a byte.
constexpr int lanes_for(uint64_t n) { return n <= 512 ? 8 : n <= 2048 ? 16 : 32; }

// One unit: a run of whole rows, or a piece of one long row.
struct Unit {
    uint64_t first_row;
    uint32_t num_rows;
    uint32_t first_channel;  // a multiple of tile_channels
    uint32_t num_channels;
    uint32_t seeds;       // bytes of the seed plane that are in the states
    uint64_t seed_plane;  // offset in the message of the unit's first byte that is not

    BLOOMBEE_HD uint32_t values() const { return num_rows * num_channels; }
    BLOOMBEE_HD uint32_t groups() const { return (num_channels + group_values - 1) / group_values; }  // a row
    BLOOMBEE_HD uint32_t coded() const { return num_rows * groups() * group_values; }
};

struct Layout {
    uint64_t rows, channels, num_values;
    uint64_t row_offsets, seed_plane, bitmaps, plane1, plane0;  // byte offsets; of planes that are there
    uint64_t units;                                             // the first unit's
    uint64_t num_units;
    uint32_t rows_per_unit, segments, segment_channels;
    int dtype, lanes, row_bits;
    bool has_plane0, has_plane1;  // fp32: bytes 0 and 1 of the elements

    BLOOMBEE_HD static uint32_t least(uint64_t a, uint64_t b) { return static_cast<uint32_t>(a < b ? a : b); }
    BLOOMBEE_HD uint32_t seeds_of(uint64_t values) const { return least(2 * lanes, values); }

    BLOOMBEE_HD static Layout make(uint64_t rows, uint64_t channels, int dtype, int row_bits, int lanes, int unit_log2,
                                   bool has_plane0, bool has_plane1) {
        Layout a{};
        a.rows = rows;
        a.channels = channels;
        a.num_values = rows * channels;
        a.dtype = dtype;
        a.lanes = lanes;
        a.row_bits = row_bits;
        a.has_plane0 = has_plane0;
        a.has_plane1 = has_plane1;
        const uint64_t unit = uint64_t{1} << unit_log2, padded = ceil_div(channels, group_values) * group_values;
        a.segment_channels = static_cast<uint32_t>(unit);
        a.segments = static_cast<uint32_t>(ceil_div(channels, unit));
        a.rows_per_unit = a.segments > 1 ? 1 : static_cast<uint32_t>(unit / padded);
        a.num_units = a.segments > 1 ? rows * a.segments : ceil_div(rows, a.rows_per_unit);

        const uint64_t last_values = a.segments > 1 ? channels - (a.segments - 1) * unit
                                                    : (rows - (a.num_units - 1) * a.rows_per_unit) * channels;
        const uint64_t full_values = a.segments > 1 ? unit : a.rows_per_unit * channels;
        const uint64_t last_units = a.segments > 1 ? rows : 1;
        const uint64_t seeds =
            (a.num_units - last_units) * a.seeds_of(full_values) + last_units * a.seeds_of(last_values);
        a.row_offsets = coded_header_bytes;
        a.seed_plane = a.row_offsets + (row_bits == 8 ? rows : row_bits == 4 ? (rows + 1) / 2 : 0);
        a.bitmaps = a.seed_plane + a.num_values - seeds;
        a.plane1 = a.bitmaps + (dtype == code_fp16 ? rows * 3 * bitmap_bytes(channels) : 0);
        a.plane0 = a.plane1 + (dtype == code_fp32 && has_plane1 ? a.num_values : 0);
        a.units = a.plane0 + (dtype == code_fp32 && has_plane0 ? a.num_values : 0);
        a.units += a.units & 1;
        return a;
    }

    BLOOMBEE_HD static uint64_t bitmap_bytes(uint64_t channels) { return (channels + 7) / 8; }

    BLOOMBEE_HD Unit unit(uint64_t index) const {
        Unit u{};
        if (segments > 1) {
            const uint64_t row = index / segments, segment = index % segments;
            const uint64_t last = channels - uint64_t{segments - 1} * segment_channels;
            const uint64_t row_seeds = uint64_t{segments - 1} * seeds_of(segment_channels) + seeds_of(last);
            u.first_row = row;
            u.num_rows = 1;
            u.first_channel = static_cast<uint32_t>(segment) * segment_channels;
            u.num_channels = segment + 1 < segments ? segment_channels : static_cast<uint32_t>(last);
            u.seed_plane = seed_plane + row * (channels - row_seeds) +
                           segment * (uint64_t{segment_channels} - seeds_of(segment_channels));
        } else {
            u.first_row = index * rows_per_unit;
            u.num_rows = least(rows_per_unit, rows - u.first_row);
            u.num_channels = static_cast<uint32_t>(channels);
            const uint64_t full = uint64_t{rows_per_unit} * channels;
            u.seed_plane = seed_plane + index * (full - seeds_of(full));
        }
        u.seeds = seeds_of(u.values());
        return u;
    }
};

}  // namespace bloombee::rans
