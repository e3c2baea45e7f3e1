// What the encoder and the decoder of messages share: scratch, row offsets, packed states.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "codec/checksum.h"
#include "codec/rans.h"
#include "codec/rans_ops.h"

namespace bloombee::rans {

constexpr size_t unit_coded = size_t{1} << max_unit_log2;  // symbols of the largest unit
constexpr size_t unit_blocks = unit_coded / group_values;
constexpr size_t max_state_bytes = max_lanes / 2 + (30 * max_lanes + 7) / 8;

template <class T>
inline T load(const uint8_t* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

template <class T>
inline void store(uint8_t* p, T value) {
    std::memcpy(p, &value, sizeof value);
}

// Header: 0 version << 4 | coded, 1 dtype | lanes code << 2, 2 unit log2 | missing planes << 4, 3 escapes of a single
// unit, 4 CRC-32C, 8 table key (coded messages only).
inline uint32_t message_checksum(const uint8_t* message, size_t size, const Table* table) {
    const uint32_t head = crc32c(message, 4, table ? table->checksum_seed : 0);
    return crc32c(message + raw_header_bytes, size - raw_header_bytes, head);
}

constexpr int lanes_code(int lanes) { return lanes == 8 ? 0 : lanes == 16 ? 1 : 2; }

// Everything of a coded message's header but the checksum.
inline void write_head(const Layout& a, int unit_log2, const Table& table, uint8_t escapes, uint8_t* message) {
    message[0] = version << 4 | 1;
    message[1] = static_cast<uint8_t>(a.dtype | lanes_code(a.lanes) << 2);
    message[2] = static_cast<uint8_t>(unit_log2);
    if (a.dtype == code_fp32) message[2] |= static_cast<uint8_t>(!a.has_plane0 << 4 | !a.has_plane1 << 5);
    message[3] = escapes;
    std::memcpy(message + 8, table.digest, 4);
}

// Layout of a coded message for a shape; not nullptr: what is wrong with its header.
const char* read_head(const Shape& shape, const uint8_t* message, size_t size, const Table& table, Layout& a);

// Scratch of one unit; max_units of them a thread, so that nothing is allocated per message.
struct Scratch {
    uint8_t exponents[unit_coded + exponent_room];  // of one row
    uint8_t symbols[unit_coded + symbol_room];
    uint8_t words[unit_coded + max_lanes * 2 + word_room];
    uint8_t escapes[unit_coded + escape_room];
    uint8_t table[unit_blocks];
    uint8_t base[unit_blocks];
    uint8_t seeds[2 * max_lanes];
    uint32_t states[max_lanes];
};

inline Scratch* scratch() {
    thread_local const std::unique_ptr<Scratch[]> all(new Scratch[max_units]());
    return all.get();
}

// How many of the units from `index` on are coded together: those of the largest number of lanes, and only if alike.
inline int batch_at(const Ops& ops, const Layout& a, uint64_t index) {
    const uint64_t left = a.num_units - index;
    for (int num = a.lanes == max_lanes ? ops.units : 1; num > 1; num /= 2) {
        if (left < static_cast<uint64_t>(num)) continue;
        bool alike = true;
        for (int k = 1; k < num; ++k) alike &= a.unit(index + k).coded() == a.unit(index).coded();
        if (alike) return num;
    }
    return 1;
}

inline Row row_of(const TableView& t, const Scratch& s, const Unit& u, uint32_t row) {
    const size_t c = u.first_channel, at = size_t{row} * u.groups();
    return {u.num_channels, t.ordered, t.shift + c, t.order + c, t.inverse + c, t.tables, s.table + at, s.base + at};
}

inline void place_row(const TableView& view, const Unit& u, uint32_t row, int offset, Scratch& s) {
    const uint32_t first = u.first_channel / group_values, groups = u.groups();
    for (uint32_t g = 0; g < groups; ++g) {
        const Position p = position(view, first + g, offset);
        s.table[row * groups + g] = static_cast<uint8_t>(p.table);
        s.base[row * groups + g] = static_cast<uint8_t>(p.base);
    }
}

inline Blocks blocks_of(const Layout& a, const Table& t, const Scratch& s, const Unit& u) {
    return {t.tables.data(), t.vectors.data(), s.table, size_t{u.num_rows} * u.groups(), a.lanes};
}

// -- row offsets -------------------------------------------------------------------------------

inline int row_offset(const Table& t, uint64_t sum) {
    // Mean exponent in quarter octaves, rounded.
    // 8 * 255 * max_channels fits into 32 bits, whose division is faster.
    const int64_t mean = (8 * static_cast<uint32_t>(sum) + t.channels) / (2 * t.channels);
    const int64_t most = t.row_bits == 8 ? 127 : 7;
    return static_cast<int>(std::clamp<int64_t>(mean - t.row_base, -most - 1, most));
}

inline void write_offset(const Layout& a, uint8_t* message, uint64_t row, int offset) {
    if (a.row_bits == 8) {
        message[a.row_offsets + row] = static_cast<uint8_t>(offset + 128);
    } else if (a.row_bits == 4) {
        uint8_t& pair = message[a.row_offsets + row / 2];
        pair = static_cast<uint8_t>(row % 2 ? pair | (offset + 8) << 4 : offset + 8);
    }
}

inline int read_offset(const Layout& a, const uint8_t* message, uint64_t row) {
    if (a.row_bits == 8) return message[a.row_offsets + row] - 128;
    if (a.row_bits == 4) return (message[a.row_offsets + row / 2] >> (row % 2 * 4) & 15) - 8;
    return 0;
}

// -- final states: 4 bits of length a lane, then the bits below the leading one ------------------

inline size_t pack_states(const uint32_t* states, int lanes, uint8_t* out) {
    uint8_t* p = out;
    uint64_t pending = 0;
    int bits = 0;
    for (int lane = 0; lane < lanes; ++lane) {
        const int n = bit_length(states[lane]) - 1;
        pending |= static_cast<uint64_t>(states[lane] & ((1u << n) - 1)) << bits;
        for (bits += n; bits >= 8; bits -= 8, pending >>= 8) *p++ = static_cast<uint8_t>(pending);
    }
    if (bits > 0) *p++ = static_cast<uint8_t>(pending);
    for (int lane = 0; lane < lanes; lane += 2)
        *p++ = static_cast<uint8_t>((bit_length(states[lane]) - 16) | (bit_length(states[lane + 1]) - 16) << 4);
    return static_cast<size_t>(p - out);
}

// Reads them from the end of a unit; returns where they start, nullptr if the unit is too short or the spare bits set.
inline const uint8_t* unpack_states(const uint8_t* begin, const uint8_t* end, int lanes, uint32_t* states) {
    if (end - begin < lanes / 2) return nullptr;
    const uint8_t* lengths = end - lanes / 2;
    int total = 0;
    for (int lane = 0; lane < lanes; ++lane) total += 15 + (lengths[lane / 2] >> (lane % 2 * 4) & 15);
    if (lengths - begin < (total + 7) / 8) return nullptr;
    const uint8_t* const start = lengths - (total + 7) / 8;
    const uint8_t* p = start;
    uint64_t pending = 0;
    int bits = 0;
    for (int lane = 0; lane < lanes; ++lane) {
        const int n = 15 + (lengths[lane / 2] >> (lane % 2 * 4) & 15);
        for (; bits < n; bits += 8) pending |= uint64_t{*p++} << bits;
        states[lane] = 1u << n | (static_cast<uint32_t>(pending) & ((1u << n) - 1));
        pending >>= n;
        bits -= n;
    }
    return pending == 0 ? start : nullptr;
}

// Calls f(values before the seeds' end, values after) pieces of a row: the first `seeds` values of a unit have their
// seed bytes in the states, all others in the seed plane.
template <class F>
inline void in_pieces(const Unit& u, uint32_t row, F f) {
    const uint32_t start = row * u.num_channels, stop = start + u.num_channels;
    const uint32_t cut = std::clamp(u.seeds, start, stop);
    if (cut > start) f(start, cut - start, true);
    if (stop > cut) f(cut, stop - cut, false);
}

}  // namespace bloombee::rans
