// e^x and its sum over a row in binary64, written so that compilers vectorise it; the same bits at every level.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "sampler/noise.h"

namespace bloombee {

constexpr size_t num_sums = 16;

// e^x for x <= 0 within 2 ulp; below -700 it stays at e^-700. x = k ln 2 + r, |r| <= 0.35, and 13 terms of e^r.
static inline double exact_exp(double x) {
    constexpr double whole = 0x1.8p52;
    x = x > -700.0 ? x : -700.0;
    const double shifted = x * 0x1.71547652b82fep+0 + whole;
    const double k = shifted - whole;
    const double r = (x - k * ln2_high) - k * ln2_low;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 1.0 / 2;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const uint64_t power = std::bit_cast<uint64_t>(shifted) - std::bit_cast<uint64_t>(whole);
    return std::bit_cast<double>(std::bit_cast<uint64_t>(p) + (power << 52));
}

// NaN and -inf add e^-700, which is nothing beside the 1 of the best.
static inline double sum_exp_of(const float* logits, size_t num_tokens, float best) {
    constexpr size_t chunk = 16 * num_sums;
    const double top = best;
    double sums[num_sums] = {};
    for (size_t start = 0; start < num_tokens; start += chunk) {
        const size_t count = num_tokens - start < chunk ? num_tokens - start : chunk;
        double powers[chunk];
        for (size_t i = 0; i < count; ++i) {
            const double x = static_cast<double>(logits[start + i]) - top;
            powers[i] = exact_exp(x > 0.0 ? 0.0 : x);
        }
        for (size_t i = 0; i < count; ++i) sums[i % num_sums] += powers[i];
    }
    double sum = 0.0;
    for (size_t j = 0; j < num_sums; ++j) sum += sums[j];
    return sum;
}

}  // namespace bloombee
