// The activation codec, one value and one lane at a time: shared by the scalar CPU path and the CUDA kernels.
// The format is docs/codec.md; the vector paths (rans_avx2.cpp, rans_vbmi.cpp) compute the same functions.
#pragma once

#include <cstdint>

#include "codec/planes.h"

namespace bloombee::rans {

constexpr int group_values = 64;    // channels that share a table in one row
constexpr int tile_channels = 256;  // the channel order permutes inside tiles of this size
constexpr int max_tables = 16;      // 4 clusters x 4 phases
constexpr int num_symbols = 32;     // 0: escape, 1..30: window of exponents, 31: exponent 0
constexpr int max_window = 30;
constexpr int escape_symbol = 0;
constexpr int zero_symbol = 31;
constexpr int probability_bits = 8;
constexpr uint32_t state_low = 1u << 15;  // states are in [2^15, 2^31), words of 16 bits
constexpr int max_lanes = 32;
constexpr int max_unit_log2 = 14;

enum DtypeCode : int { code_bf16 = 0, code_fp16 = 1, code_fp32 = 2, code_other = 3 };

static constexpr BLOOMBEE_HD int element_size(int dtype) {
    return dtype == code_fp32 ? 4 : dtype == code_other ? 1 : 2;
}

// One of the tables of a coder: how one symbol is encoded, and how a slot is decoded.
struct alignas(64) SymbolTable {
    uint8_t slot[256];             // slot -> symbol
    uint32_t range[num_symbols];   // frequency << 8 | start
    uint32_t encode[num_symbols];  // frequency << 23 | shift << 9 | bias
    uint32_t reciprocal[num_symbols];
    uint8_t low;       // first exponent of the window, relative to the position; modulo 256
    uint8_t window;    // its size
    uint8_t has_zero;  // 1: exponent 0 is symbol 31
    uint8_t fill;      // what padding is coded as: the commonest symbol
};

// The same for decoders that work on vectors of bytes or gather (AVX2).
struct alignas(64) VectorTable {
    uint32_t wide_slot[256];  // slot -> symbol << 24 | frequency << 8 | slot - start
    // The symbols that have a frequency, by rank.
    uint8_t rank_frequency[num_symbols];
    uint8_t rank_start[num_symbols];
    uint8_t rank_shift[num_symbols];
    uint8_t rank_reciprocal[4][num_symbols];  // its bytes, the lowest first
    uint8_t num_ranks;
    uint8_t has_zero;
};

// What coding needs of a table; see rans_table.h. The pointers are of the side, host or device, that uses them.
struct TableView {
    bool ordered;
    const uint8_t* phase;
    const uint8_t* cluster;
    const uint8_t* shift;
    const uint8_t* order;
    const uint8_t* inverse;
    const SymbolTable* tables;
};

// Where a group of a row with offset q is: its table, and the start of its window without the channel's shift.
struct Position {
    uint32_t table;
    uint32_t base;
};

static BLOOMBEE_HD Position position(const TableView& t, uint32_t group, int q) {
    const int at = t.phase[group] + q;
    const uint32_t table = t.cluster[group] * 4u + (static_cast<uint32_t>(at) & 3u);
    return {table, (static_cast<uint32_t>(at >> 2) + t.tables[table].low) & 0xffu};
}

// -- exponents and symbols ---------------------------------------------------------------------

// Symbol of `exponent` in a group whose window starts at `base` (modulo 256).
static BLOOMBEE_HD uint32_t symbol_of(uint32_t exponent, uint32_t base, uint32_t window, uint32_t has_zero) {
    if (has_zero && exponent == 0) return zero_symbol;
    const uint32_t index = (exponent - base) & 0xffu;
    return index < window ? index + 1 : escape_symbol;
}

// Inverse for every symbol but the escape.
static BLOOMBEE_HD uint32_t exponent_of(uint32_t symbol, uint32_t base) {
    return symbol == zero_symbol ? 0 : (symbol - 1 + base) & 0xffu;
}

// -- the coder ---------------------------------------------------------------------------------

static BLOOMBEE_HD bool encode_needs_word(uint32_t state, uint32_t entry) { return state >= (entry & 0x7f800000u); }

// The state after a symbol; `state` < frequency << 23. The division is exact (Alverson 1991: 32-bit reciprocal,
// 31-bit numerator); frequency 1 is the case whose quotient comes out one too small, which its bias makes good.
static BLOOMBEE_HD uint32_t encode_step(uint32_t state, uint32_t entry, uint32_t reciprocal) {
    const uint32_t quotient =
        static_cast<uint32_t>((static_cast<uint64_t>(state) * reciprocal) >> 32) >> ((entry >> 9) & 7);
    return state + (entry & 0x1ff) + quotient * (256 - (entry >> 23));
}

// The state before it needs a word; `range` is of the symbol in slot `state & 255`.
static BLOOMBEE_HD uint32_t decode_step(uint32_t state, uint32_t range) {
    return (range >> 8) * (state >> 8) + ((state - range) & 0xffu);
}

static BLOOMBEE_HD int bit_length(uint32_t x) {
#if defined(__CUDA_ARCH__)
    return 32 - __clz(static_cast<int>(x));
#else
    return 32 - std::countl_zero(x);
#endif
}

// -- values ------------------------------------------------------------------------------------

// Exponent, and the byte that goes into the seed plane.
template <int dtype>
static BLOOMBEE_HD uint32_t exponent_bits(uint32_t value) {
    if constexpr (dtype == code_bf16) return (value >> 7) & 0xffu;
    if constexpr (dtype == code_fp16) return (value >> 10) & 0x1fu;
    return (value >> 23) & 0xffu;
}
template <int dtype>
static BLOOMBEE_HD uint32_t seed_byte(uint32_t value) {
    if constexpr (dtype == code_bf16) return (value & 0x7fu) | ((value >> 8) & 0x80u);
    if constexpr (dtype == code_fp16) return value & 0xffu;
    return ((value >> 16) & 0x7fu) | ((value >> 24) & 0x80u);
}

// The part of a value that exponent and seed byte determine.
template <int dtype>
static BLOOMBEE_HD uint32_t value_of(uint32_t exponent, uint32_t seed) {
    if constexpr (dtype == code_bf16) return exponent << 7 | (seed & 0x7fu) | (seed & 0x80u) << 8;
    if constexpr (dtype == code_fp16) return (exponent & 0x1fu) << 10 | seed;
    return exponent << 23 | (seed & 0x7fu) << 16 | (seed & 0x80u) << 24;
}

// fp16 only: bits 8, 9 and 15, which go into three bitmaps a row.
static constexpr BLOOMBEE_HD int fp16_bit(int map) { return map == 2 ? 15 : 8 + map; }

}  // namespace bloombee::rans
