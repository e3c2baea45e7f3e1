// The inner loops of the activation codec, one set per instruction set. Every set gives the same bytes.
// No pointer needs to be aligned. "Room" is what a function may read or write beyond the items it means.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/rans_lane.h"

namespace bloombee::rans {

constexpr size_t exponent_room = 256;  // bytes after the exponents of a unit
constexpr size_t symbol_room = 64;     // after the symbols
constexpr size_t escape_room = 64;     // after the escapes that to_symbols writes
constexpr size_t word_room = 64;       // after the words that encode writes
constexpr size_t words_before = 128;   // before the words that decode reads
constexpr size_t words_after = 32;     // and after them, for 8 lanes 16

constexpr int max_units = 4;

// One row (or piece of one) on its way to symbols or back. Its first channel is a multiple of 256; `shift`, `order`
// and `inverse` start there.
struct Row {
    uint32_t num_channels;
    bool ordered;
    const uint8_t* shift;
    const uint8_t* order;
    const uint8_t* inverse;
    const SymbolTable* tables;
    const uint8_t* table;  // [groups] index of each group's table
    const uint8_t* base;   // [groups] start of its window, see Position
};

// The blocks of 64 symbols of one unit.
struct Blocks {
    const SymbolTable* tables;
    const VectorTable* vectors;
    const uint8_t* table;  // [num_blocks] index of each block's table
    size_t num_blocks;
    int lanes;
};

struct Ops {
    const char* name;
    // [n] values -> exponents and seed plane; returns the sum of the exponents.
    uint64_t (*split)(int dtype, const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds);
    // Inverse; bits that neither determines are left 0 (fp16: 3, fp32: 16).
    void (*join)(int dtype, const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values);
    // fp16: bits 8, 9 and 15 of [n] values <-> three bitmaps of ceil(n / 8) bytes. `add` ORs into the values.
    void (*split_bits)(const uint8_t* values, size_t n, uint8_t* bitmaps);
    void (*add_bits)(const uint8_t* bitmaps, size_t n, uint8_t* values);
    // fp32: bytes 1 and 0 of [n] values <-> planes; nullptr: a plane that is not there.
    void (*split_low)(const uint8_t* values, size_t n, uint8_t* plane1, uint8_t* plane0);
    void (*add_low)(const uint8_t* plane1, const uint8_t* plane0, size_t n, uint8_t* values);
    // Exponents (channel order) -> symbols (gathered order, whole groups) and escaped exponents (at most one a
    // channel); returns where those end.
    uint8_t* (*to_symbols)(const Row& row, const uint8_t* exponents, uint8_t* symbols, uint8_t* escapes);
    // Inverse. Takes escapes from `escapes` on; returns where the next one is, nullptr if there are too few.
    const uint8_t* (*to_exponents)(const Row& row, const uint8_t* symbols, uint8_t* exponents, const uint8_t* escapes,
                                   const uint8_t* escapes_end);
    // Encodes `num` units of equally many blocks and lanes, each from its last symbol to its first. states[u] [lanes]
    // in and out; words[u] in: where its words go, out: where they end.
    void (*encode)(const Blocks* blocks, int num, const uint8_t* const* symbols, uint32_t* const* states,
                   uint8_t** words);
    // Decodes them; words are taken from end[u] downwards. end[u] out: where that stopped; nullptr if it went below
    // begin[u] in any unit.
    void (*decode)(const Blocks* blocks, int num, uint8_t* const* symbols, uint32_t* const* states,
                   const uint8_t* const* begin, const uint8_t** end);
    // How many units at a time are fastest; at most max_units.
    int units;
};

extern const Ops scalar_ops;
#if BLOOMBEE_X86
extern const Ops avx2_ops;
extern const Ops vbmi_ops;
#endif

// The best set that current_isa() allows on this CPU.
const Ops& current_ops();

}  // namespace bloombee::rans
