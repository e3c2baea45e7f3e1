#include "sampler/row.h"

#include "core/isa.h"
#include "sampler/sum_exp.h"

namespace bloombee {
namespace {

size_t block_end(size_t start, size_t num_tokens) {
    return start + block_tokens < num_tokens ? start + block_tokens : num_tokens;
}

template <bool has_mask>
float find_bests_in(const float* logits, size_t num_tokens, const uint64_t* mask, float* bests) {
    float best = -__builtin_inff();
    for (size_t start = 0; start < num_tokens; start += block_tokens) {
        float block = -__builtin_inff();
        if constexpr (has_mask) {
            for (size_t i = start; i < block_end(start, num_tokens); ++i) {
                const float logit = logit_at(logits, mask, i);
                block = logit > block ? logit : block;
            }
        } else {
            for (size_t i = start; i < block_end(start, num_tokens); ++i) block = logits[i] > block ? logits[i] : block;
            block = clean(block);
        }
        bests[start / block_tokens] = block;
        best = block > best ? block : best;
    }
    return best;
}

float find_bests(const float* logits, size_t num_tokens, const uint64_t* mask, float* bests) {
    return by_mask<find_bests_in<true>, find_bests_in<false>>(mask, logits, num_tokens, mask, bests);
}

template <bool has_mask>
Best pick_in(const Row& row, Noise noise, Cut cut, Best best) {
    float bar = bar_of(best);
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (can_skip(row, cut, row.bests[start / block_tokens], bar)) continue;
        for (size_t i = start; i < block_end(start, row.num_tokens); ++i) {
            if (has_mask && !(allowed_in(row.mask, start) >> (i - start) & 1)) continue;
            const float x = (row.logits[i] - row.best) * row.inverse;
            if (!(row.logits[i] >= cut.logit && x + static_cast<float>(max_gumbel) > bar)) continue;
            const uint32_t top = static_cast<uint32_t>(noise_bits(noise, static_cast<uint32_t>(i)) >> 32);
            const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(~top));
            if (x + (upper_offset - upper_slope * static_cast<float>(bits)) > bar) {
                offer(row, noise, cut, static_cast<int32_t>(i), best);
                bar = bar_of(best);
            }
        }
    }
    return best;
}

Best pick(const Row& row, Noise noise, Cut cut, Best best) {
    return by_mask<pick_in<true>, pick_in<false>>(row.mask, row, noise, cut, best);
}

template <bool has_mask>
Masses masses_in(const Row& row, Cut within, Cut before) {
    Masses sums{};
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (row.bests[start / block_tokens] < within.logit) continue;
        for (size_t i = start; i < block_end(start, row.num_tokens); ++i) {
            const float logit = has_mask ? logit_at(row.logits, row.mask, i) : clean(row.logits[i]);
            const uint64_t weight = weight_of(row, logit);
            const int32_t id = static_cast<int32_t>(i);
            sums.within += kept(within, logit, id) ? weight : 0;
            sums.before += kept(before, logit, id) ? weight : 0;
        }
    }
    return sums;
}

Masses masses(const Row& row, Cut within, Cut before) {
    return by_mask<masses_in<true>, masses_in<false>>(row.mask, row, within, before);
}

}  // namespace

const RowKernels row_kernels_scalar{find_bests, pick, masses, sum_exp_of};

const RowKernels& row_kernels() {
#if BLOOMBEE_X86
    if (current_isa() == Isa::avx512) return row_kernels_avx512;
    if (current_isa() == Isa::avx2) return row_kernels_avx2;
#endif
    return row_kernels_scalar;
}

}  // namespace bloombee
