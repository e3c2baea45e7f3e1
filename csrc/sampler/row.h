// One row of logits, and the kernels that pass over it.
//
// A token that the row's mask does not allow counts as one with a logit of minus infinity.
//
// Everything about a row is said in the order (logit descending, token id ascending). Each filter keeps a prefix of that
// order, so a filter is a Cut, and filters combine by taking the tighter one. NaN counts as minus infinity, plus infinity
// as the largest float; minus infinity is never kept.
//
// Two quantities are defined bit for bit, with T the temperature and `best` the row's largest logit:
//
//   score(i)  = (double(l_i) - double(best)) / T + gumbel(i), in binary64: the pick is the largest (lowest id on a tie)
//   weight(i) = floor(2^40 e^y) with y = max((l_i - best) * float(min(1 / T, 1e30)), -30) in binary32 and e^y as in
//               weight_of below: an integer, so a sum of weights is exact whatever its order. Top-p counts in weights.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "sampler/noise.h"

namespace bloombee {

// A row's largest logit per this many tokens lets a pass leave out what lies below its cut.
constexpr size_t block_tokens = 64;

// Kept are the tokens with a logit > `logit`, and those with a logit == `logit` and an id <= `id`.
struct Cut {
    float logit;
    int32_t id;
};

constexpr Cut keep_all{-FLT_MAX, INT32_MAX};

struct Row {
    const float* logits;  // [num_tokens]
    size_t num_tokens;    // <= 2^23: weights must not overflow
    const uint64_t* mask; // as of find_bests
    const float* bests;   // [ceil(num_tokens / block_tokens)], the largest logit of each block
    float best;           // the largest of all; finite
    double temperature;   // (0, 1e18]
    float inverse;        // float(min(1 / temperature, 1e30))
};

struct Best {
    double score;
    int32_t id;
};

struct Masses {
    uint64_t within;
    uint64_t before;
};

static inline float clean(float logit) { return logit > FLT_MAX ? FLT_MAX : logit == logit ? logit : -__builtin_inff(); }

// Which tokens of the block that starts at `start` may be picked.
static inline uint64_t allowed_in(const uint64_t* mask, size_t start) {
    static_assert(block_tokens == 64);
    return mask == nullptr ? ~uint64_t{0} : mask[start / block_tokens];
}

// Of token `i`: one that may not be picked counts as minus infinity.
static inline float logit_at(const float* logits, const uint64_t* mask, size_t i) {
    return allowed_in(mask, i) >> (i % block_tokens) & 1 ? clean(logits[i]) : -__builtin_inff();
}

// Kernels are made twice, with a mask and without: most rows have none, and are to pay nothing for those that do.
template <auto with_mask, auto without, class... Args>
inline auto by_mask(const uint64_t* mask, const Args&... args) {
    return mask != nullptr ? with_mask(args...) : without(args...);
}

static inline bool kept(Cut cut, float logit, int32_t id) {
    return logit > cut.logit || (logit == cut.logit && id <= cut.id);
}

// -- score -------------------------------------------------------------------------------------

// In single precision first, one comparison decides for almost all tokens that they cannot win:
//   gumbel = -log(-log u) <= -log(1 - u), because -log u >= 1 - u, and
//   log2 w >= (the bits of w as an integer) * 2^-23 - 127, because the logarithm is concave.
// With w <= 1 - u from the top 32 bits of the noise, that is upper_offset - upper_slope * bits(float(~top)). The slack
// covers every rounding: x = (l - best) / T is only of interest above -41, where its error in binary32 is below 1e-5.
constexpr float upper_offset = 159.0f * 0x1.62e43p-1f;
constexpr float upper_slope = 0x1.62e43p-1f * 0x1p-23f;
constexpr float upper_slack = 1e-3f;

static inline double score_of(const Row& row, Noise noise, int32_t id) {
    const double x = (static_cast<double>(clean(row.logits[id])) - static_cast<double>(row.best)) / row.temperature;
    return x + gumbel_of(noise_bits(noise, static_cast<uint32_t>(id)));
}

// Make `id` the best if it is kept and beats the best so far.
static inline void offer(const Row& row, Noise noise, Cut cut, int32_t id, Best& best) {
    if (!kept(cut, clean(row.logits[id]), id)) return;
    const double score = score_of(row, noise, id);
    if (score > best.score || (score == best.score && id < best.id)) best = {score, id};
}

// What a single-precision bound must exceed to be looked at.
static inline float bar_of(const Best& best) { return static_cast<float>(best.score) - upper_slack; }

// Whether no token of a block whose largest logit is `block_best` can beat `bar`, or none is kept.
static inline bool can_skip(const Row& row, Cut cut, float block_best, float bar) {
    return block_best < cut.logit || (block_best - row.best) * row.inverse + static_cast<float>(max_gumbel) < bar;
}

// -- weight ------------------------------------------------------------------------------------

constexpr float log2_e = 0x1.715476p+0f;
constexpr float ln2_high_single = 0x1.62e4p-1f, ln2_low_single = 0x1.7f7d1cp-20f;
constexpr float to_whole = 0x1.8p23f;  // (t + to_whole) - to_whole rounds t to a whole number
constexpr float lowest_power = -30.0f;
constexpr int num_exp_terms = 7;
constexpr float exp_terms[num_exp_terms] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f};

static inline uint64_t weight_of(const Row& row, float logit) {
    const float scaled = (logit - row.best) * row.inverse;
    const float y = scaled > lowest_power ? scaled : lowest_power;
    const float shifted = y * log2_e + to_whole;
    const float whole = shifted - to_whole;
    const float r = (y - whole * ln2_high_single) - whole * ln2_low_single;
    float p = exp_terms[0];
    for (int i = 1; i < num_exp_terms; ++i) p = p * r + exp_terms[i];
    p = p * r + 1.0f;
    // 2^whole * p <= 1: shift its 24-bit significand to 40 fraction bits.
    const uint32_t bits = std::bit_cast<uint32_t>(p);
    const int32_t power = static_cast<int32_t>(bits >> 23) +
                          static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(to_whole));
    return (uint64_t{(bits & 0x7fffffu) | 0x800000u} << 17) >> (127 - power);
}

// -- kernels, one set per level ----------------------------------------------------------------

struct RowKernels {
    // Largest logit of every block into `bests`; returns the largest of all (-inf if there is none). Only tokens count whose
    // bit in `mask` is set: bit i % 64 of word i / 64, for token i; all do where it is null.
    float (*find_bests)(const float* logits, size_t num_tokens, const uint64_t* mask, float* bests);
    // The kept token with the largest score, given one of them (`best`) to begin with.
    Best (*pick)(const Row& row, Noise noise, Cut cut, Best best);
    // Sums of the weights of what `within` keeps and, of those, of what `before` keeps.
    Masses (*masses)(const Row& row, Cut within, Cut before);
    // Sum of e^(l_i - best) in binary64: 16 partial sums, token i in sum i % 16, added up in order at the end.
    double (*sum_exp)(const float* logits, size_t num_tokens, float best);
};

extern const RowKernels row_kernels_scalar;
#if BLOOMBEE_X86
extern const RowKernels row_kernels_avx2;
extern const RowKernels row_kernels_avx512;
#endif

// Of the level in use.
const RowKernels& row_kernels();

}  // namespace bloombee
