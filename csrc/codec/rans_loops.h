// The loops of the activation codec written value by value. Internal linkage throughout: the scalar path and the AVX2
// path each compile their own copy (see core/isa.h).
#pragma once

#include <string.h>

#include "codec/rans_ops.h"

namespace bloombee::rans {
namespace {

template <class T>
T load(const uint8_t* p) {
    T value;
    memcpy(&value, p, sizeof value);
    return value;
}

template <class T>
void store(uint8_t* p, T value) {
    memcpy(p, &value, sizeof value);
}

template <int dtype, class T>
uint64_t split_values(const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint32_t value = load<T>(values + i * sizeof(T)), exponent = exponent_bits<dtype>(value);
        exponents[i] = static_cast<uint8_t>(exponent);
        seeds[i] = static_cast<uint8_t>(seed_byte<dtype>(value));
        sum += exponent;
    }
    return sum;
}

template <int dtype, class T>
void join_values(const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values) {
    for (size_t i = 0; i < n; ++i)
        store(values + i * sizeof(T), static_cast<T>(value_of<dtype>(exponents[i], seeds[i])));
}

[[maybe_unused]] uint64_t split(int dtype, const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    if (dtype == code_bf16) return split_values<code_bf16, uint16_t>(values, n, exponents, seeds);
    if (dtype == code_fp16) return split_values<code_fp16, uint16_t>(values, n, exponents, seeds);
    return split_values<code_fp32, uint32_t>(values, n, exponents, seeds);
}

[[maybe_unused]] void join(int dtype, const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values) {
    if (dtype == code_bf16) return join_values<code_bf16, uint16_t>(exponents, seeds, n, values);
    if (dtype == code_fp16) return join_values<code_fp16, uint16_t>(exponents, seeds, n, values);
    return join_values<code_fp32, uint32_t>(exponents, seeds, n, values);
}

[[maybe_unused]] void split_bits(const uint8_t* values, size_t n, uint8_t* bitmaps) {
    const size_t bytes = (n + 7) / 8;
    memset(bitmaps, 0, 3 * bytes);
    for (size_t i = 0; i < n; ++i)
        for (int k = 0; k < 3; ++k)
            bitmaps[k * bytes + i / 8] |=
                static_cast<uint8_t>((load<uint16_t>(values + 2 * i) >> fp16_bit(k) & 1) << (i % 8));
}

[[maybe_unused]] void add_bits(const uint8_t* bitmaps, size_t n, uint8_t* values) {
    const size_t bytes = (n + 7) / 8;
    for (size_t i = 0; i < n; ++i) {
        uint32_t value = load<uint16_t>(values + 2 * i);
        for (int k = 0; k < 3; ++k) value |= (bitmaps[k * bytes + i / 8] >> (i % 8) & 1u) << fp16_bit(k);
        store(values + 2 * i, static_cast<uint16_t>(value));
    }
}

[[maybe_unused]] void split_low(const uint8_t* values, size_t n, uint8_t* plane1, uint8_t* plane0) {
    for (size_t i = 0; i < n && plane1; ++i) plane1[i] = values[4 * i + 1];
    for (size_t i = 0; i < n && plane0; ++i) plane0[i] = values[4 * i];
}

[[maybe_unused]] void add_low(const uint8_t* plane1, const uint8_t* plane0, size_t n, uint8_t* values) {
    for (size_t i = 0; i < n && plane1; ++i) values[4 * i + 1] = plane1[i];
    for (size_t i = 0; i < n && plane0; ++i) values[4 * i] = plane0[i];
}

// From channel position `first` on.
[[maybe_unused]] uint8_t* to_symbols_from(const Row& row, uint32_t first, const uint8_t* exponents, uint8_t* symbols,
                                          uint8_t* escapes) {
    const uint32_t padded = (row.num_channels + group_values - 1) / group_values * group_values;
    for (uint32_t i = first; i < padded; ++i) {
        const SymbolTable& t = row.tables[row.table[i / group_values]];
        if (i >= row.num_channels) {
            symbols[i] = t.fill;
            continue;
        }
        const uint8_t exponent = exponents[i / tile_channels * tile_channels + row.order[i]];
        const uint32_t symbol =
            symbol_of(exponent, uint32_t{row.base[i / group_values]} + row.shift[i], t.window, t.has_zero);
        symbols[i] = static_cast<uint8_t>(symbol);
        if (symbol == escape_symbol) *escapes++ = exponent;
    }
    return escapes;
}

[[maybe_unused]] const uint8_t* to_exponents_from(const Row& row, uint32_t first, const uint8_t* symbols,
                                                  uint8_t* exponents, const uint8_t* escapes,
                                                  const uint8_t* escapes_end) {
    for (uint32_t i = first; i < row.num_channels; ++i) {
        uint32_t exponent = exponent_of(symbols[i], uint32_t{row.base[i / group_values]} + row.shift[i]);
        if (symbols[i] == escape_symbol) {
            if (escapes == escapes_end) return nullptr;
            exponent = *escapes++;
        }
        exponents[i / tile_channels * tile_channels + row.order[i]] = static_cast<uint8_t>(exponent);
    }
    return escapes;
}

}  // namespace
}  // namespace bloombee::rans
