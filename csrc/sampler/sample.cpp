#include "sampler/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace bloombee {
namespace {

// -- the order (logit descending, id ascending) ------------------------------------------------

// Grows with the logit; +0 and -0 are one value. No branch: signs are hard to guess.
uint32_t ordered(float logit) {
    const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

float unordered(uint32_t value) {
    return std::bit_cast<float>(value & 0x80000000u ? value & 0x7fffffffu : ~value);
}

// Descending keys are the order.
uint64_t key_of(float logit, size_t id) { return uint64_t{ordered(logit)} << 32 | static_cast<uint32_t>(~id); }

Cut cut_at(uint64_t key) {
    return {unordered(static_cast<uint32_t>(key >> 32)), static_cast<int32_t>(~static_cast<uint32_t>(key))};
}

Cut tighter(Cut a, Cut b) {
    return a.logit != b.logit ? (a.logit > b.logit ? a : b) : (a.id < b.id ? a : b);
}

// -- what a row needs before its filters -------------------------------------------------------

struct Scratch {
    std::vector<float> bests, sorted_bests;
    std::vector<uint64_t> keys;
    std::vector<uint32_t> counts;
};

Scratch& scratch() {
    thread_local Scratch memory;
    return memory;
}

Row open_row(const float* logits, size_t num_tokens, const uint64_t* mask, double temperature, Scratch& memory) {
    memory.bests.resize((num_tokens + block_tokens - 1) / block_tokens);
    const float best = row_kernels().find_bests(logits, num_tokens, mask, memory.bests.data());
    const float inverse = static_cast<float>(std::min(1.0 / temperature, 1e30));
    return {logits, num_tokens, mask, memory.bests.data(), best, temperature, inverse};
}

float logit_in(const Row& row, size_t id) { return logit_at(row.logits, row.mask, id); }

int32_t first_best(const Row& row) {
    size_t id = 0;
    while (row.bests[id / block_tokens] != row.best) id += block_tokens;
    while (logit_in(row, id) != row.best) ++id;
    return static_cast<int32_t>(id);
}

// -- filters -----------------------------------------------------------------------------------

// A logit that at least `k` tokens reach (or all do), and not many more: k blocks hold k such tokens. Needs
// k <= number of blocks to be of use.
float low_guess(size_t k, Scratch& memory) {
    if (k > memory.bests.size()) return -FLT_MAX;
    memory.sorted_bests = memory.bests;
    const auto kth = memory.sorted_bests.begin() + static_cast<ptrdiff_t>(k - 1);
    std::nth_element(memory.sorted_bests.begin(), kth, memory.sorted_bests.end(), std::greater<>());
    return std::max(*kth, -FLT_MAX);
}

// Keys of all tokens with a logit >= least, unsorted.
void gather(const Row& row, float least, std::vector<uint64_t>& keys) {
    keys.clear();
    for (size_t start = 0; start < row.num_tokens; start += block_tokens) {
        if (row.bests[start / block_tokens] < least) continue;
        const size_t stop = std::min(start + block_tokens, row.num_tokens);
        for (size_t i = start; i < stop; ++i) {
            const float logit = logit_in(row, i);
            if (logit >= least) keys.push_back(key_of(logit, i));
        }
    }
}

// Keys of the tokens among which the k-th is, when k is large: counts by the leading bits of the logits say in which
// bucket. Returns how many tokens come before that bucket.
size_t gather_bucket(const Row& row, size_t k, Scratch& memory) {
    constexpr int dropped_bits = 18;
    memory.counts.assign(size_t{1} << (32 - dropped_bits), 0);
    for (size_t i = 0; i < row.num_tokens; ++i) ++memory.counts[ordered(logit_in(row, i)) >> dropped_bits];
    const uint32_t last = ordered(-FLT_MAX) >> dropped_bits;
    uint32_t bucket = ordered(row.best) >> dropped_bits;
    size_t before = 0;
    for (; bucket > last && before + memory.counts[bucket] < k; --bucket) before += memory.counts[bucket];
    memory.keys.resize(memory.counts[bucket] + 1);
    size_t found = 0;  // every key is written, the next one over it unless it belongs: no branch to guess
    for (size_t i = 0; i < row.num_tokens; ++i) {
        const uint64_t key = key_of(logit_in(row, i), i);
        memory.keys[found] = key;
        found += (key >> (32 + dropped_bits)) == bucket;
    }
    memory.keys.resize(found);
    return before;
}

Cut cut_top_k(const Row& row, size_t k, Scratch& memory) {
    if (k == 0 || k >= row.num_tokens) return keep_all;
    constexpr size_t small_row = 4096;
    size_t before = 0;
    if (k <= memory.bests.size() || row.num_tokens <= small_row) gather(row, low_guess(k, memory), memory.keys);
    else before = gather_bucket(row, k, memory);
    if (before + memory.keys.size() < k) return keep_all;
    const auto kth = memory.keys.begin() + static_cast<ptrdiff_t>(k - before - 1);
    std::nth_element(memory.keys.begin(), kth, memory.keys.end(), std::greater<>());
    return cut_at(*kth);
}

// Kept is (l - best) / T >= log(min_p), a condition that holds from some float on; found by bisection.
Cut cut_min_p(const Row& row, double min_p) {
    if (min_p < DBL_MIN) return keep_all;
    const double least = exact_log(min_p);
    uint32_t low = ordered(-FLT_MAX), high = ordered(row.best);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const double x = (static_cast<double>(unordered(middle)) - static_cast<double>(row.best)) / row.temperature;
        if (x >= least) high = middle;
        else low = middle + 1;
    }
    return {unordered(high), INT32_MAX};
}

// Weight that the kept prefix must reach.
uint64_t weight_wanted(double top_p, uint64_t all) {
    return std::min(all, static_cast<uint64_t>(std::ceil(top_p * static_cast<double>(all))));
}

}  // namespace

// Top-p needs no sorting: a pick among more than the filter keeps is the pick among what it keeps, if it is one of
// them; and it is, if the weight before it in the order is still below what the filter wants. If not, then
// everything from it on is out, and the search goes on before it. The chance of success is >= top_p each time.
uint32_t sample_row(const float* logits, size_t num_tokens, const uint64_t* mask, const SampleParams& params) {
    Scratch& memory = scratch();
    const Row row = open_row(logits, num_tokens, mask, params.temperature, memory);
    if (!(row.best >= -FLT_MAX)) return 0;
    const int32_t best_id = first_best(row);
    if (params.temperature == 0.0) return static_cast<uint32_t>(best_id);

    const RowKernels& kernels = row_kernels();
    const Cut top_k = cut_top_k(row, params.top_k, memory);
    Cut search = tighter(top_k, cut_min_p(row, params.min_p));
    const Best start{score_of(row, params.noise, best_id), best_id};
    uint64_t wanted = 0;
    for (;;) {
        const Best pick = kernels.pick(row, params.noise, search, start);
        if (params.top_p >= 1.0 || pick.id == best_id) return static_cast<uint32_t>(pick.id);
        const Cut before{clean(logits[pick.id]), pick.id - 1};
        const Masses masses = kernels.masses(row, wanted == 0 ? top_k : before, before);
        if (wanted == 0) wanted = weight_wanted(params.top_p, masses.within);
        if (masses.before < wanted) return static_cast<uint32_t>(pick.id);
        search = before;
    }
}

size_t top_tokens(const float* logits, size_t num_tokens, std::span<uint32_t> out) {
    Scratch& memory = scratch();
    const Row row = open_row(logits, num_tokens, nullptr, 1.0, memory);
    const size_t k = std::min(out.size(), num_tokens);
    if (k == 0 || !(row.best >= -FLT_MAX)) return 0;
    gather(row, low_guess(k, memory), memory.keys);
    const size_t count = std::min(k, memory.keys.size());
    std::partial_sort(memory.keys.begin(), memory.keys.begin() + static_cast<ptrdiff_t>(count), memory.keys.end(),
                      std::greater<>());
    for (size_t i = 0; i < count; ++i) out[i] = ~static_cast<uint32_t>(memory.keys[i]);
    return count;
}

void log_softmax(const float* logits, size_t num_tokens, std::span<const uint32_t> ids, std::span<double> out) {
    const Row row = open_row(logits, num_tokens, nullptr, 1.0, scratch());
    const double nothing = -std::numeric_limits<double>::infinity();
    if (!(row.best >= -FLT_MAX)) return std::fill(out.begin(), out.end(), nothing);
    const double log_sum = exact_log(row_kernels().sum_exp(logits, num_tokens, row.best));
    for (size_t i = 0; i < ids.size(); ++i) {
        const float logit = clean(logits[ids[i]]);
        out[i] = logit < -FLT_MAX ? nothing : (static_cast<double>(logit) - static_cast<double>(row.best)) - log_sum;
    }
}

}  // namespace bloombee
