#include <immintrin.h>

#include "sampler/row.h"
#include "sampler/sum_exp.h"

namespace bloombee {
namespace {

constexpr size_t lanes = 16;
constexpr size_t vectors = block_tokens / lanes;

// The v-th vector of the block that starts at `start`; what lies beyond the row is -inf.
inline __m512 load(const float* logits, size_t num_tokens, size_t start, size_t v) {
    const size_t first = start + v * lanes;
    if (first + lanes <= num_tokens) return _mm512_loadu_ps(logits + first);
    const size_t rest = first < num_tokens ? num_tokens - first : 0;
    const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
    return _mm512_mask_loadu_ps(nothing, static_cast<__mmask16>((1u << rest) - 1), logits + first);
}

// As above; what the mask does not allow is -inf too.
template <bool has_mask>
inline __m512 load(const float* logits, size_t num_tokens, const uint64_t* mask, size_t start, size_t v) {
    const __m512 loaded = load(logits, num_tokens, start, v);
    if constexpr (!has_mask) return loaded;
    const __mmask16 allowed = static_cast<__mmask16>(allowed_in(mask, start) >> (v * lanes));
    return _mm512_mask_blend_ps(allowed, _mm512_set1_ps(-__builtin_inff()), loaded);
}

// min and max give their second operand where either is NaN.
inline __m512 clamped(__m512 logits) { return _mm512_min_ps(_mm512_set1_ps(FLT_MAX), logits); }

template <bool has_mask>
float find_bests_in(const float* logits, size_t num_tokens, const uint64_t* mask, float* bests) {
    float best = -__builtin_inff();
    for (size_t start = 0; start < num_tokens; start += block_tokens) {
        __m512 most = _mm512_set1_ps(-__builtin_inff());
        for (size_t v = 0; v < vectors; ++v) most = _mm512_max_ps(load<has_mask>(logits, num_tokens, mask, start, v), most);
        const float block = _mm512_reduce_max_ps(clamped(most));
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
    __m512i k0[philox::rounds], k1[philox::rounds];
    __m512i position_low, position_high;
};

inline RoundKeys round_keys(Noise noise) {
    RoundKeys keys;
    for (int round = 0; round < philox::rounds; ++round) {
        const uint32_t r = static_cast<uint32_t>(round);
        keys.k0[round] = _mm512_set1_epi64(static_cast<uint32_t>(noise.seed) + r * philox::weyl[0]);
        keys.k1[round] = _mm512_set1_epi64(static_cast<uint32_t>(noise.seed >> 32) + r * philox::weyl[1]);
    }
    keys.position_low = _mm512_set1_epi64(static_cast<uint32_t>(noise.position));
    keys.position_high = _mm512_set1_epi64(static_cast<uint32_t>(noise.position >> 32));
    return keys;
}

// Top words of the noise of the block's 64 tokens. A 64-bit lane holds the words of one call, each in the low half of
// its register (the high halves are left over products, which multiplication ignores).
inline void noise_tops(const RoundKeys& keys, size_t start, __m512i tops[vectors]) {
    const __m512i m0 = _mm512_set1_epi64(philox::multiplier[0]), m1 = _mm512_set1_epi64(philox::multiplier[1]);
    __m512i c0[vectors], c1[vectors], c2[vectors], c3[vectors];
    for (size_t v = 0; v < vectors; ++v) {
        const long long first = static_cast<long long>(start / 2 + v * (lanes / 2));
        c0[v] = _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
        c1[v] = _mm512_setzero_si512();
        c2[v] = keys.position_low;
        c3[v] = keys.position_high;
    }
#pragma GCC unroll 10
    for (int round = 0; round < philox::rounds; ++round) {
#pragma GCC unroll 4
        for (size_t v = 0; v < vectors; ++v) {
            const __m512i p0 = _mm512_mul_epu32(c0[v], m0), p1 = _mm512_mul_epu32(c2[v], m1);
            c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[v], keys.k0[round], 0x96);
            c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[v], keys.k1[round], 0x96);
            c1[v] = p1;
            c3[v] = p0;
        }
    }
    for (size_t v = 0; v < vectors; ++v) tops[v] = _mm512_mask_blend_epi32(0xaaaa, c1[v], _mm512_slli_epi64(c3[v], 32));
}

inline __m512 upper_gumbels(__m512i tops) {
    const __m512i bits = _mm512_castps_si512(_mm512_cvtepu32_ps(_mm512_xor_si512(tops, _mm512_set1_epi32(-1))));
    const __m512 steps = _mm512_mul_ps(_mm512_set1_ps(upper_slope), _mm512_cvtepi32_ps(bits));
    return _mm512_sub_ps(_mm512_set1_ps(upper_offset), steps);
}

template <bool has_mask>
Best pick_in(const Row& row, Noise noise, Cut cut, Best best) {
    const RoundKeys keys = round_keys(noise);
    const __m512 least = _mm512_set1_ps(cut.logit), top = _mm512_set1_ps(row.best);
    const __m512 inverse = _mm512_set1_ps(row.inverse);
    float bar = bar_of(best);
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (can_skip(row, cut, row.bests[start / block_tokens], bar)) continue;
        __m512i tops[vectors];
        noise_tops(keys, start, tops);
        uint64_t chances = 0;
        for (size_t v = 0; v < vectors; ++v) {
            const __m512 logits = load<has_mask>(row.logits, row.num_tokens, row.mask, start, v);
            const __m512 x = _mm512_mul_ps(_mm512_sub_ps(logits, top), inverse);
            const __m512 upper = _mm512_add_ps(x, upper_gumbels(tops[v]));
            const __mmask16 inside = _mm512_cmp_ps_mask(logits, least, _CMP_GE_OQ);
            chances |= uint64_t{_mm512_mask_cmp_ps_mask(inside, upper, _mm512_set1_ps(bar), _CMP_GT_OQ)} << (v * lanes);
        }
        for (; chances != 0; chances &= chances - 1)
            offer(row, noise, cut, static_cast<int32_t>(start) + __builtin_ctzll(chances), best);
        bar = bar_of(best);
    }
    return best;
}

Best pick(const Row& row, Noise noise, Cut cut, Best best) {
    return by_mask<pick_in<true>, pick_in<false>>(row.mask, row, noise, cut, best);
}

// -- masses ------------------------------------------------------------------------------------

struct Weights {
    __m512i low, high;  // of the first and the last 8 tokens, 64 bits each
};

inline Weights weights(const Row& row, __m512 logits) {
    const __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(logits, _mm512_set1_ps(row.best)), _mm512_set1_ps(row.inverse));
    const __m512 y = _mm512_max_ps(scaled, _mm512_set1_ps(lowest_power));
    const __m512 shift = _mm512_set1_ps(to_whole);
    const __m512 shifted = _mm512_add_ps(_mm512_mul_ps(y, _mm512_set1_ps(log2_e)), shift);
    const __m512 whole = _mm512_sub_ps(shifted, shift);
    __m512 r = _mm512_sub_ps(y, _mm512_mul_ps(whole, _mm512_set1_ps(ln2_high_single)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(whole, _mm512_set1_ps(ln2_low_single)));
    __m512 p = _mm512_set1_ps(exp_terms[0]);
    for (int i = 1; i < num_exp_terms; ++i) p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(exp_terms[i]));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f));
    const __m512i bits = _mm512_castps_si512(p);
    const __m512i significand =
        _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffff)), _mm512_set1_epi32(0x800000));
    const __m512i power = _mm512_add_epi32(
        _mm512_srli_epi32(bits, 23), _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(shift)));
    const __m512i right = _mm512_sub_epi32(_mm512_set1_epi32(127), power);
    const auto half = [&](int which) {
        const __m256i m = which ? _mm512_extracti64x4_epi64(significand, 1) : _mm512_castsi512_si256(significand);
        const __m256i s = which ? _mm512_extracti64x4_epi64(right, 1) : _mm512_castsi512_si256(right);
        return _mm512_srlv_epi64(_mm512_slli_epi64(_mm512_cvtepu32_epi64(m), 17), _mm512_cvtepu32_epi64(s));
    };
    return {half(0), half(1)};
}

inline __mmask16 kept_lanes(Cut cut, __m512 logits, __m512i ids) {
    const __m512 least = _mm512_set1_ps(cut.logit);
    const __mmask16 equal = _mm512_cmp_ps_mask(logits, least, _CMP_EQ_OQ);
    return _mm512_cmp_ps_mask(logits, least, _CMP_GT_OQ) |
           _mm512_mask_cmple_epi32_mask(equal, ids, _mm512_set1_epi32(cut.id));
}

inline void add(__m512i& sum, __mmask16 lanes_kept, const Weights& w) {
    sum = _mm512_mask_add_epi64(sum, static_cast<__mmask8>(lanes_kept), sum, w.low);
    sum = _mm512_mask_add_epi64(sum, static_cast<__mmask8>(lanes_kept >> 8), sum, w.high);
}

template <bool has_mask>
Masses masses_in(const Row& row, Cut within, Cut before) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i sum_within = _mm512_setzero_si512(), sum_before = _mm512_setzero_si512();
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (row.bests[start / block_tokens] < within.logit) continue;
        for (size_t v = 0; v < vectors; ++v) {
            const __m512 logits = clamped(load<has_mask>(row.logits, row.num_tokens, row.mask, start, v));
            const __m512i ids = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(start + v * lanes)), iota);
            const Weights w = weights(row, logits);
            add(sum_within, kept_lanes(within, logits, ids), w);
            add(sum_before, kept_lanes(before, logits, ids), w);
        }
    }
    return {static_cast<uint64_t>(_mm512_reduce_add_epi64(sum_within)),
            static_cast<uint64_t>(_mm512_reduce_add_epi64(sum_before))};
}

Masses masses(const Row& row, Cut within, Cut before) {
    return by_mask<masses_in<true>, masses_in<false>>(row.mask, row, within, before);
}

}  // namespace

const RowKernels row_kernels_avx512{find_bests, pick, masses, sum_exp_of};

}  // namespace bloombee
