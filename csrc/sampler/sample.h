// From logits to token ids. The definition is in row.h and noise.h; bloombee/engine/sampler_reference.py says the same in
// Python, and every level gives its result exactly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "sampler/row.h"

namespace bloombee {

// Beyond this, differences of logits that overflow binary32 would matter.
constexpr double max_temperature = 1e18;

struct SampleParams {
    double temperature;  // [0, max_temperature]; 0: the largest logit, lowest id on a tie, and nothing below matters
    uint32_t top_k;      // keep the k best; 0: all
    double top_p;        // (0, 1]: of what top_k kept, the shortest prefix with >= this share of the weight; 1: all
    double min_p;        // [0, 1]: keep what has >= this share of the best one's probability; 0: all
    Noise noise;
};

// Most tokens of a row: 2^23 weights of 2^40 fit 64 bits.
constexpr size_t max_tokens = size_t{1} << 23;

// One token of logits [num_tokens], num_tokens in [1, max_tokens], of those that `mask` allows (one bit a token, see row.h;
// null: all). The best of them passes every filter. A row of which none has a finite logit or +inf gives token 0.
uint32_t sample_row(const float* logits, size_t num_tokens, const uint64_t* mask, const SampleParams& params);

// The first `out.size()` tokens in the order (logit descending, id ascending); returns how many there were (tokens with
// a logit of -inf or NaN are left out).
size_t top_tokens(const float* logits, size_t num_tokens, std::span<uint32_t> out);

// log softmax in binary64 at `ids` (each < num_tokens); -inf where the logit is -inf or NaN.
void log_softmax(const float* logits, size_t num_tokens, std::span<const uint32_t> ids, std::span<double> out);

}  // namespace bloombee
