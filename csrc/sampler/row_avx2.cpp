#include <immintrin.h>

#include "sampler/row.h"
#include "sampler/sum_exp.h"

namespace bloombee {
namespace {

constexpr size_t lanes = 8;
constexpr size_t vectors = block_tokens / lanes;
constexpr size_t pair = 2;  // vectors whose noise is made side by side

// The v-th vector of the block that starts at `start`; what lies beyond the row is -inf.
inline __m256 load(const float* logits, size_t num_tokens, size_t start, size_t v) {
    const size_t first = start + v * lanes;
    if (first + lanes <= num_tokens) return _mm256_loadu_ps(logits + first);
    float padded[lanes];
    for (size_t i = 0; i < lanes; ++i) padded[i] = first + i < num_tokens ? logits[first + i] : -__builtin_inff();
    return _mm256_loadu_ps(padded);
}

// As above; what the mask does not allow is -inf too.
template <bool has_mask>
inline __m256 load(const float* logits, size_t num_tokens, const uint64_t* mask, size_t start, size_t v) {
    const __m256 loaded = load(logits, num_tokens, start, v);
    if constexpr (!has_mask) return loaded;
    const int allowed = static_cast<int>(allowed_in(mask, start) >> (v * lanes) & 0xff);
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(allowed), bits), bits);
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), loaded, _mm256_castsi256_ps(set));
}

// min and max give their second operand where either is NaN.
inline __m256 clamped(__m256 logits) { return _mm256_min_ps(_mm256_set1_ps(FLT_MAX), logits); }

template <bool has_mask>
float find_bests_in(const float* logits, size_t num_tokens, const uint64_t* mask, float* bests) {
    float best = -__builtin_inff();
    for (size_t start = 0; start < num_tokens; start += block_tokens) {
        __m256 most = _mm256_set1_ps(-__builtin_inff());
        for (size_t v = 0; v < vectors; ++v) most = _mm256_max_ps(load<has_mask>(logits, num_tokens, mask, start, v), most);
        most = clamped(most);
        most = _mm256_max_ps(most, _mm256_permute2f128_ps(most, most, 1));
        most = _mm256_max_ps(most, _mm256_permute_ps(most, 0x4e));
        most = _mm256_max_ps(most, _mm256_permute_ps(most, 0xb1));
        const float block = _mm256_cvtss_f32(most);
        bests[start / block_tokens] = block;
        best = block > best ? block : best;
    }
    return best;
}

float find_bests(const float* logits, size_t num_tokens, const uint64_t* mask, float* bests) {
    return by_mask<find_bests_in<true>, find_bests_in<false>>(mask, logits, num_tokens, mask, bests);
}

// -- pick --------------------------------------------------------------------------------------

struct RoundKeys {
    __m256i k0[philox::rounds], k1[philox::rounds];
    __m256i position_low, position_high;
};

inline RoundKeys round_keys(Noise noise) {
    RoundKeys keys;
    for (int round = 0; round < philox::rounds; ++round) {
        const uint32_t r = static_cast<uint32_t>(round);
        keys.k0[round] = _mm256_set1_epi64x(static_cast<uint32_t>(noise.seed) + r * philox::weyl[0]);
        keys.k1[round] = _mm256_set1_epi64x(static_cast<uint32_t>(noise.seed >> 32) + r * philox::weyl[1]);
    }
    keys.position_low = _mm256_set1_epi64x(static_cast<uint32_t>(noise.position));
    keys.position_high = _mm256_set1_epi64x(static_cast<uint32_t>(noise.position >> 32));
    return keys;
}

// Top words of the noise of 16 tokens from `first` on. A 64-bit lane holds the words of one call, each in the low half
// of its register (the high halves are left over products, which multiplication ignores).
inline void noise_tops(const RoundKeys& keys, size_t first, __m256i tops[pair]) {
    const __m256i m0 = _mm256_set1_epi64x(philox::multiplier[0]), m1 = _mm256_set1_epi64x(philox::multiplier[1]);
    __m256i c0[pair], c1[pair], c2[pair], c3[pair];
    for (size_t v = 0; v < pair; ++v) {
        const long long call = static_cast<long long>(first / 2 + v * (lanes / 2));
        c0[v] = _mm256_add_epi64(_mm256_set1_epi64x(call), _mm256_setr_epi64x(0, 1, 2, 3));
        c1[v] = _mm256_setzero_si256();
        c2[v] = keys.position_low;
        c3[v] = keys.position_high;
    }
#pragma GCC unroll 10
    for (int round = 0; round < philox::rounds; ++round) {
#pragma GCC unroll 2
        for (size_t v = 0; v < pair; ++v) {
            const __m256i p0 = _mm256_mul_epu32(c0[v], m0), p1 = _mm256_mul_epu32(c2[v], m1);
            c0[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[v]), keys.k0[round]);
            c2[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[v]), keys.k1[round]);
            c1[v] = p1;
            c3[v] = p0;
        }
    }
    for (size_t v = 0; v < pair; ++v) tops[v] = _mm256_blend_epi32(c1[v], _mm256_slli_epi64(c3[v], 32), 0xaa);
}

inline __m256 upper_gumbels(__m256i tops) {
    // There is no unsigned conversion: half of ~top (rounded down, so the bound stays one), then doubled.
    const __m256i half = _mm256_srli_epi32(_mm256_xor_si256(tops, _mm256_set1_epi32(-1)), 1);
    const __m256 w = _mm256_mul_ps(_mm256_cvtepi32_ps(half), _mm256_set1_ps(2.0f));
    const __m256 steps = _mm256_mul_ps(_mm256_set1_ps(upper_slope), _mm256_cvtepi32_ps(_mm256_castps_si256(w)));
    return _mm256_sub_ps(_mm256_set1_ps(upper_offset), steps);
}

template <bool has_mask>
Best pick_in(const Row& row, Noise noise, Cut cut, Best best) {
    const RoundKeys keys = round_keys(noise);
    const __m256 least = _mm256_set1_ps(cut.logit), top = _mm256_set1_ps(row.best);
    const __m256 inverse = _mm256_set1_ps(row.inverse);
    float bar = bar_of(best);
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (can_skip(row, cut, row.bests[start / block_tokens], bar)) continue;
        for (size_t v = 0; v < vectors; v += pair) {
            __m256i tops[pair];
            noise_tops(keys, start + v * lanes, tops);
            unsigned chances = 0;
            for (size_t w = 0; w < pair; ++w) {
                const __m256 logits = load<has_mask>(row.logits, row.num_tokens, row.mask, start, v + w);
                const __m256 x = _mm256_mul_ps(_mm256_sub_ps(logits, top), inverse);
                const __m256 upper = _mm256_add_ps(x, upper_gumbels(tops[w]));
                const __m256 inside = _mm256_cmp_ps(logits, least, _CMP_GE_OQ);
                const __m256 above = _mm256_cmp_ps(upper, _mm256_set1_ps(bar), _CMP_GT_OQ);
                chances |= static_cast<unsigned>(_mm256_movemask_ps(_mm256_and_ps(inside, above))) << (w * lanes);
            }
            if (chances == 0) continue;
            for (; chances != 0; chances &= chances - 1)
                offer(row, noise, cut, static_cast<int32_t>(start + v * lanes) + __builtin_ctz(chances), best);
            bar = bar_of(best);
        }
    }
    return best;
}

Best pick(const Row& row, Noise noise, Cut cut, Best best) {
    return by_mask<pick_in<true>, pick_in<false>>(row.mask, row, noise, cut, best);
}

// -- masses ------------------------------------------------------------------------------------

struct Weights {
    __m256i low, high;  // of the first and the last 4 tokens, 64 bits each
};

inline Weights weights(const Row& row, __m256 logits) {
    const __m256 scaled = _mm256_mul_ps(_mm256_sub_ps(logits, _mm256_set1_ps(row.best)), _mm256_set1_ps(row.inverse));
    const __m256 y = _mm256_max_ps(scaled, _mm256_set1_ps(lowest_power));
    const __m256 shift = _mm256_set1_ps(to_whole);
    const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(y, _mm256_set1_ps(log2_e)), shift);
    const __m256 whole = _mm256_sub_ps(shifted, shift);
    __m256 r = _mm256_sub_ps(y, _mm256_mul_ps(whole, _mm256_set1_ps(ln2_high_single)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(whole, _mm256_set1_ps(ln2_low_single)));
    __m256 p = _mm256_set1_ps(exp_terms[0]);
    for (int i = 1; i < num_exp_terms; ++i) p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(exp_terms[i]));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.0f));
    const __m256i bits = _mm256_castps_si256(p);
    const __m256i significand =
        _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff)), _mm256_set1_epi32(0x800000));
    const __m256i power = _mm256_add_epi32(
        _mm256_srli_epi32(bits, 23), _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(shift)));
    const __m256i right = _mm256_sub_epi32(_mm256_set1_epi32(127), power);
    const auto half = [&](int which) {
        const __m128i m = which ? _mm256_extracti128_si256(significand, 1) : _mm256_castsi256_si128(significand);
        const __m128i s = which ? _mm256_extracti128_si256(right, 1) : _mm256_castsi256_si128(right);
        return _mm256_srlv_epi64(_mm256_slli_epi64(_mm256_cvtepu32_epi64(m), 17), _mm256_cvtepu32_epi64(s));
    };
    return {half(0), half(1)};
}

inline __m256i kept_lanes(Cut cut, __m256 logits, __m256i ids) {
    const __m256 least = _mm256_set1_ps(cut.logit);
    const __m256i equal = _mm256_castps_si256(_mm256_cmp_ps(logits, least, _CMP_EQ_OQ));
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(logits, least, _CMP_GT_OQ));
    const __m256i late = _mm256_cmpgt_epi32(ids, _mm256_set1_epi32(cut.id));
    return _mm256_or_si256(above, _mm256_andnot_si256(late, equal));
}

inline void add(__m256i& sum, __m256i lanes_kept, const Weights& w) {
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes_kept));
    const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes_kept, 1));
    sum = _mm256_add_epi64(sum, _mm256_and_si256(low, w.low));
    sum = _mm256_add_epi64(sum, _mm256_and_si256(high, w.high));
}

inline uint64_t total(__m256i sum) {
    uint64_t parts[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sum);
    return parts[0] + parts[1] + parts[2] + parts[3];
}

template <bool has_mask>
Masses masses_in(const Row& row, Cut within, Cut before) {
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i sum_within = _mm256_setzero_si256(), sum_before = _mm256_setzero_si256();
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (row.bests[start / block_tokens] < within.logit) continue;
        for (size_t v = 0; v < vectors; ++v) {
            const __m256 logits = clamped(load<has_mask>(row.logits, row.num_tokens, row.mask, start, v));
            const __m256i ids = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(start + v * lanes)), iota);
            const Weights w = weights(row, logits);
            add(sum_within, kept_lanes(within, logits, ids), w);
            add(sum_before, kept_lanes(before, logits, ids), w);
        }
    }
    return {total(sum_within), total(sum_before)};
}

Masses masses(const Row& row, Cut within, Cut before) {
    return by_mask<masses_in<true>, masses_in<false>>(row.mask, row, within, before);
}

}  // namespace

const RowKernels row_kernels_avx2{find_bests, pick, masses, sum_exp_of};

}  // namespace bloombee
