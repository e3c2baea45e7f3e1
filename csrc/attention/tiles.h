// The two kernels: narrow tiles, whose splits are worked on by a block each, and wide ones, whose keys a warp takes from first
// to last. What a block does between two of its barriers is a function here; the host calls them in the same order.
#pragma once

#include "attention/strip.h"

namespace bloombee::attention {

// -- narrow: a block has one split of one band, a warp one strip of it ---------------------------

// What a block's warps share.
template <class T>
struct NarrowMemory {
    Four parts[narrow_warps][Width<T>::elements][lanes];  // of one group of values, by strips
    Stats stats[narrow_warps][lanes];
    Factors factors[narrow_warps][lanes];
    int slots[narrow_warps][strip_keys];
    uint32_t arrived;
};

// A band in one split, and where its sums go if there are others.
struct NarrowBand {
    Band band;
    int split, first_split, num_splits;
    int64_t part;     // number of the split's, counted from 0
    int64_t counter;  // of the band
};

// False: nothing is to be done.
static BLOOMBEE_HD bool make_narrow(const Task& task, const Item& item, int index, int head, int number, NarrowBand* out) {
    if (!make_band(task, item, head, number, &out->band)) return false;
    out->split = item.split;
    out->first_split = out->band.oldest / split_keys;
    out->num_splits = out->band.newest / split_keys - out->first_split + 1;
    out->part = (static_cast<int64_t>(index) * task.kv_heads + head) * task.bands[0] + number;
    out->counter = (static_cast<int64_t>(item.tile) * task.kv_heads + head) * task.bands[0] + number;
    return item.split >= out->first_split && item.split < out->first_split + out->num_splits;
}

template <class T, int dim, class Warp>
static BLOOMBEE_HD void weigh_strip(Warp& warp, const Task& task, const Band& band, int strip, int* slots,
                                    typename Warp::template Lanes<Query<Cut<T, dim>::words>>& query,
                                    typename Warp::template Lanes<Weights<T>>& weights,
                                    typename Warp::template Lanes<Stats>& stats) {
    constexpr int words = Cut<T, dim>::words, passes = Cut<T, dim>::passes;
    typename Warp::template Lanes<Scores> scores;
    warp.each([&](int lane) { find_slots(task, band, strip, lane, slots); });
    warp.sync();
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
        if (passes > 1) warp.each([&](int lane) { load_query<T>(task, band, pass, lane, query[lane]); });
        score<T, words>(warp, task, band, pass, slots, query, scores);
    }
    weigh<T>(warp, task, band, strip, scores, weights, stats);
}

// First: each warp weighs its strip.
template <class T, int dim, class Warp>
static BLOOMBEE_HD void narrow_weigh(Warp& warp, int number, const Task& task, const NarrowBand& narrow,
                                     NarrowMemory<T>& memory,
                                     typename Warp::template Lanes<Weights<T>>& weights) {
    const Band& band = narrow.band;
    const int strip = narrow.split * split_strips + number;
    typename Warp::template Lanes<Stats> stats;
    if (strip < band.oldest / strip_keys || strip > band.newest / strip_keys) {
        warp.each([&](int lane) { memory.stats[number][lane] = nothing(); });
        return;
    }
    typename Warp::template Lanes<Query<Cut<T, dim>::words>> query;
    if (Cut<T, dim>::passes == 1) warp.each([&](int lane) { load_query<T>(task, band, 0, lane, query[lane]); });
    weigh_strip<T, dim>(warp, task, band, strip, memory.slots[number], query, weights, stats);
    warp.each([&](int lane) { memory.stats[number][lane] = stats[lane]; });
}

// Of the first `strips` of the split.
template <class T>
static BLOOMBEE_HD Stats narrow_stats(const NarrowMemory<T>& memory, int strips, int lane) {
    Stats total = nothing();
    for (int strip = 0; strip < strips; ++strip) join(total, memory.stats[strip][lane]);
    return total;
}

// Then, for each group of values: each warp sums those of its strip.
template <class T, class Warp>
static BLOOMBEE_HD void narrow_sum(Warp& warp, int number, const Task& task, const NarrowBand& narrow, int group,
                                   NarrowMemory<T>& memory,
                                   typename Warp::template Lanes<Weights<T>>& weights) {
    const Band& band = narrow.band;
    const int strip = narrow.split * split_strips + number;
    typename Warp::template Lanes<Sums<T>> sums;
    if (strip < band.oldest / strip_keys || strip > band.newest / strip_keys)
        warp.each([&](int lane) { sums[lane] = {}; });
    else
        sum_values<T>(warp, task, band, memory.slots[number], group, weights, sums);
    warp.each([&](int lane) {
        if (group == 0) {
            Stats before = narrow_stats(memory, number, lane);
            memory.factors[number][lane] = join(before, memory.stats[number][lane]);
        }
#pragma unroll
        for (int j = 0; j < Width<T>::elements; ++j) memory.parts[number][j][lane] = sums[lane].tiles[j];
    });
}

static BLOOMBEE_HD Four* parts_of(const Task& task, int64_t part, int tiles) {
    return reinterpret_cast<Four*>(task.parts) + part * (1 + tiles) * lanes;
}

// Then a lane adds up the strips' sums of tile j of the group; if there are other splits they are kept for later, else stored.
template <class T, int dim>
static BLOOMBEE_HD void narrow_add(const Task& task, const NarrowBand& narrow, int group, int j,
                                   const NarrowMemory<T>& memory, const Stats& stats, int lane) {
    constexpr int elements = Width<T>::elements, tiles = Cut<T, dim>::tiles;
    if (lane / 4 >= narrow.band.pairs) return;
    Four total = {};
#pragma unroll
    for (int strip = 0; strip < split_strips; ++strip)
        add(total, memory.parts[strip][j][lane], memory.factors[strip][lane]);
    if (narrow.num_splits == 1) {
        store<T>(task, narrow.band, group, j, total, finish<T>(task, narrow.band, stats, lane), lane);
        return;
    }
    Four* const parts = parts_of(task, narrow.part, tiles);
    if (group == 0 && j == 0) parts[lane] = {{stats.most[0], stats.most[1], stats.sum[0], stats.sum[1]}};
    parts[(1 + group * elements + j) * lanes + lane] = total;
}

static BLOOMBEE_HD Four load_part_of_sum(const Four* at) {
#if defined(__CUDA_ARCH__)
    const float4 x = __ldcg(reinterpret_cast<const float4*>(at));  // written by other blocks of this kernel
    return {{x.x, x.y, x.z, x.w}};
#else
    return *at;
#endif
}

// Last, once all splits of the band are there: adds up those of one lane in one tile. `number` counts both, the lanes that have pairs
// first; false: there are no more.
template <class T, int dim>
static BLOOMBEE_HD bool narrow_finish(const Task& task, const NarrowBand& narrow, int number) {
    constexpr int elements = Width<T>::elements, tiles = Cut<T, dim>::tiles, ahead = 8;
    const int used = narrow.band.pairs < 8 ? 4 * narrow.band.pairs : lanes, tile = number / used, lane = number % used;
    if (tile >= tiles || !has_group<T>(task, tile / elements)) return false;
    const int64_t step = static_cast<int64_t>(task.kv_heads) * task.bands[0];
    const int64_t first = narrow.part - (narrow.split - narrow.first_split) * step;
    Stats stats = nothing();
    Four total = {};
    for (int split = 0; split < narrow.num_splits; split += ahead) {
        Four next[ahead][2];
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            const int64_t part = first + (split + i < narrow.num_splits ? split + i : split) * step;
            next[i][0] = load_part_of_sum(parts_of(task, part, tiles) + lane);
            next[i][1] = load_part_of_sum(parts_of(task, part, tiles) + (1 + tile) * lanes + lane);
        }
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            if (split + i >= narrow.num_splits) break;
            const float* const x = next[i][0].x;
            add(total, next[i][1], join(stats, {{x[0], x[1]}, {x[2], x[3]}}));
        }
    }
    store<T>(task, narrow.band, tile / elements, tile % elements, total, finish<T>(task, narrow.band, stats, lane), lane);
    return true;
}

// -- wide: a warp has a band with all its keys ---------------------------------------------------

template <class T, int dim>
struct Totals {
    Sums<T> groups[Cut<T, dim>::groups];
};

// `slots`: [strip_keys] for the warp. `kept(lane, i)`: memory of a lane's own, [groups * elements] Four: the sum of splits that are
// done, while the registers have that of the split at hand.
template <class T, int dim, class Warp, class Kept>
static BLOOMBEE_HD void wide_band(Warp& warp, const Task& task, const Band& band, int* slots, Kept kept) {
    constexpr int elements = Width<T>::elements, groups = Cut<T, dim>::groups;
    typename Warp::template Lanes<Query<Cut<T, dim>::words>> query;
    typename Warp::template Lanes<Weights<T>> weights;
    typename Warp::template Lanes<Stats> all, total, stats;
    typename Warp::template Lanes<Totals<T, dim>> totals;
    if (Cut<T, dim>::passes == 1) warp.each([&](int lane) { load_query<T>(task, band, 0, lane, query[lane]); });
    warp.each([&](int lane) {
        all[lane] = nothing();
        for (int i = 0; i < groups * elements; ++i) kept(lane, i) = {};
    });
    const int last = band.newest / strip_keys;
    for (int strip = band.oldest / strip_keys; strip <= last;) {
        warp.each([&](int lane) {
            total[lane] = nothing();
            totals[lane] = {};
        });
        const int end = strip / split_strips * split_strips + split_strips;
        for (; strip < end && strip <= last; ++strip) {
            weigh_strip<T, dim>(warp, task, band, strip, slots, query, weights, stats);
            typename Warp::template Lanes<Factors> factors;
            warp.each([&](int lane) { factors[lane] = join(total[lane], stats[lane]); });
#pragma unroll
            for (int group = 0; group < groups; ++group) {
                if (!has_group<T>(task, group)) continue;
                typename Warp::template Lanes<Sums<T>> sums;
                sum_values<T>(warp, task, band, slots, group, weights, sums);
                warp.each([&](int lane) {
#pragma unroll
                    for (int j = 0; j < elements; ++j)
                        add(totals[lane].groups[group].tiles[j], sums[lane].tiles[j], factors[lane]);
                });
            }
            warp.sync();  // before the slots are others
        }
        warp.each([&](int lane) {
            const Factors factors = join(all[lane], total[lane]);
#pragma unroll
            for (int group = 0; group < groups; ++group)
#pragma unroll
                for (int j = 0; j < elements; ++j)
                    add(kept(lane, group * elements + j), totals[lane].groups[group].tiles[j], factors);
        });
    }
    warp.each([&](int lane) {
        const Ends ends = finish<T>(task, band, all[lane], lane);
        for (int group = 0; group < groups; ++group)
#pragma unroll
            for (int j = 0; j < elements; ++j) store<T>(task, band, group, j, kept(lane, group * elements + j), ends, lane);
    });
}

}  // namespace bloombee::attention
