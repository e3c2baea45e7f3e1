// One strip of keys by one warp, and the order in which strips and splits are added up: what both kernels, and the host, share.
#pragma once

#include "attention/warp.h"

namespace bloombee::attention {

// How a type's rows are taken: a lane reads 16 bytes at once.
template <class T>
struct Width {
    static constexpr int elements = 16 / sizeof(T);          // of 16 bytes, and tiles of 8 columns in 128 bytes of values
    static constexpr int products = sizeof(T) == 2 ? 2 : 1;  // by 16 elements of four lanes' 16 bytes
};

// And rows of up to `dim` elements: keys in passes of so many times 16 bytes a lane, so that what a lane holds is bounded;
// values in groups of 128 bytes.
template <class T, int dim>
struct Cut {
    static constexpr int reads = dim / (4 * Width<T>::elements);
    static constexpr int words = dim > 128 ? 2 : reads < 4 ? reads : 4;
    static constexpr int passes = reads / words;
    static constexpr int groups = dim / (8 * Width<T>::elements);
    static constexpr int tiles = groups * Width<T>::elements;
};

// Of the pairs in one tile, the 16 that a warp has.
struct Band {
    Item item;
    int head;    // of keys
    int first;   // pair of the item
    int pairs;   // 1 to 16
    int oldest;  // the keys that any of them sees: [oldest, newest]
    int newest;
};

// False: this band of the item has no pairs.
static BLOOMBEE_HD bool make_band(const Task& task, const Item& item, int head, int number, Band* band) {
    const int grouped = task.grouped(), first = number * band_pairs, left = item.rows * grouped - first;
    if (left <= 0) return false;
    const int pairs = left < band_pairs ? left : band_pairs;
    const int low = item.position + first / grouped + 1 - task.window;
    *band = {item, head, first, pairs, task.window && low > 0 ? low : 0, item.position + (first + pairs - 1) / grouped};
    return true;
}

// The keys that a lane's two pairs see, [low, high]; none of a pair that is not there.
struct Sight {
    int low[2], high[2];
};

static BLOOMBEE_HD Sight see(const Task& task, const Band& band, int lane) {
    Sight sight;
    for (int half = 0; half < 2; ++half) {
        const int pair = lane / 4 + 8 * half;
        const int position = band.item.position + (band.first + pair) / task.grouped();
        sight.high[half] = pair < band.pairs ? position : -1;
        sight.low[half] = task.window && position >= task.window ? position + 1 - task.window : 0;
    }
    return sight;
}

// The slots of a strip's keys for the lanes to share; -1: not read, as no pair sees it.
static BLOOMBEE_HD void find_slots(const Task& task, const Band& band, int strip, int lane, int* slots) {
    const int32_t* const pages = task.tables + band.item.pages_at;
    const unsigned size = static_cast<unsigned>(task.page_size);
    for (int key = lane; key < strip_keys; key += lanes) {
        const int position = strip * strip_keys + key;
        const unsigned at = static_cast<unsigned>(position - band.item.start);
        const bool seen = position >= band.oldest && position <= band.newest;
        slots[key] = seen ? static_cast<int>(static_cast<unsigned>(pages[at / size]) * size + at % size) : -1;
    }
}

static BLOOMBEE_HD Words load_part(const uint8_t* row, int part, int bytes) {
    if (row == nullptr || 16 * part >= bytes) return {{0, 0, 0, 0}};
    return load(row + 16 * part);
}

// A lane's part of its two pairs' queries in one pass: of each 64 bytes, which four lanes share, its own 16.
template <int words>
struct Query {
    Words low[words], high[words];
};

template <class T, int words>
static BLOOMBEE_HD void load_query(const Task& task, const Band& band, int pass, int lane, Query<words>& query) {
    const int grouped = task.grouped(), bytes = task.key_dim * static_cast<int>(sizeof(T));
    const uint8_t* rows[2];
    for (int half = 0; half < 2; ++half) {
        const int pair = lane / 4 + 8 * half, flat = band.first + pair;
        rows[half] = pair < band.pairs ? task.query + (band.item.row + flat / grouped) * task.query_row +
                                              (band.head * grouped + flat % grouped) * task.query_head
                                        : nullptr;
    }
#pragma unroll
    for (int i = 0; i < words; ++i) {
        query.low[i] = load_part(rows[0], 4 * (pass * words + i) + lane % 4, bytes);
        query.high[i] = load_part(rows[1], 4 * (pass * words + i) + lane % 4, bytes);
    }
}

// A strip's scores: tile t of eight keys, a lane's four.
struct Scores {
    Four tiles[strip_keys / 8];
};

template <class T, int words, class Warp>
static BLOOMBEE_HD void score(Warp& warp, const Task& task, const Band& band, int pass, const int* slots,
                              typename Warp::template Lanes<Query<words>>& query,
                              typename Warp::template Lanes<Scores>& scores) {
    const uint8_t* const keys = task.keys + band.head * task.key_head;
    const int bytes = task.key_dim * static_cast<int>(sizeof(T));
#pragma unroll
    for (int tile = 0; tile < strip_keys / 8; ++tile) {
        struct Key {
            Words words_of[words];
        };
        typename Warp::template Lanes<Key> key;
        warp.each([&](int lane) {
            const int slot = slots[8 * tile + lane / 4];
            const uint8_t* const row = slot < 0 ? nullptr : keys + static_cast<int64_t>(slot) * bytes;
#pragma unroll
            for (int i = 0; i < words; ++i)
                key[lane].words_of[i] = load_part(row, 4 * (pass * words + i) + lane % 4, bytes);
            if (pass == 0) scores[lane].tiles[tile] = {};
        });
#pragma unroll
        for (int i = 0; i < words; ++i)
#pragma unroll
            for (int product = 0; product < Width<T>::products; ++product) {
                typename Warp::template Lanes<Left<T>> a;
                typename Warp::template Lanes<Right<T>> b;
                warp.each([&](int lane) {
                    constexpr int half = sizeof(T) / 2;  // words of two elements
                    const uint32_t *low = query[lane].low[i].w, *high = query[lane].high[i].w;
                    const uint32_t* const own = key[lane].words_of[i].w;
#pragma unroll
                    for (int k = 0; k < 2; ++k)
#pragma unroll
                        for (int j = 0; j < half; ++j) {
                            const int from = 2 * product + k * half + j;
                            a[lane].x[2 * k * half + j] = low[from];
                            a[lane].x[(2 * k + 1) * half + j] = high[from];
                            b[lane].x[k * half + j] = own[from];
                        }
                });
                warp.multiply(T{}, a, b, [&](int lane) -> Four& { return scores[lane].tiles[tile]; });
            }
    }
}

// What a strip's keys weigh: by 16 keys as the left operand of a product, and of each of a lane's two pairs the largest score
// and the sum. A pair that sees none has -infinity and 0.
template <class T>
struct Weights {
    Left<T> of[strip_keys / 16];
};
struct Stats {
    float most[2], sum[2];
};

static BLOOMBEE_HD float hyperbolic_tangent(float x) {
#if defined(__CUDA_ARCH__)
    return tanhf(x);
#else
    return std::tanh(x);
#endif
}

template <class T>
static BLOOMBEE_HD void set_weights(Left<T>& left, const Four& even, const Four& odd) {
    if constexpr (sizeof(T) == 2) {
        left = {{pack(T{}, even.x[0], even.x[1]), pack(T{}, even.x[2], even.x[3]), pack(T{}, odd.x[0], odd.x[1]),
                 pack(T{}, odd.x[2], odd.x[3])}};
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            left.x[i] = bits_of(even.x[i]);
            left.x[4 + i] = bits_of(odd.x[i]);
        }
    }
}

template <class T, class Warp>
static BLOOMBEE_HD void weigh(Warp& warp, const Task& task, const Band& band, int strip,
                              typename Warp::template Lanes<Scores>& scores,
                              typename Warp::template Lanes<Weights<T>>& weights,
                              typename Warp::template Lanes<Stats>& stats) {
    typename Warp::template Lanes<float> most[2], sum[2];
    warp.each([&](int lane) {
        const Sight sight = see(task, band, lane);
        if (task.cap != 0.0f)
#pragma unroll
            for (int tile = 0; tile < strip_keys / 8; ++tile)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& x = scores[lane].tiles[tile].x[i];
                    x = task.cap * hyperbolic_tangent(x * task.scale);
                }
        const float scale = task.cap == 0.0f ? task.scale : 1.0f;
        float largest[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
        for (int tile = 0; tile < strip_keys / 8; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = strip * strip_keys + 8 * tile + 2 * (lane % 4) + i % 2;
                float& x = scores[lane].tiles[tile].x[i];
                x = key >= sight.low[i / 2] && key <= sight.high[i / 2] ? x * scale : minus_infinity();
                largest[i / 2] = larger(largest[i / 2], x);
            }
        most[0][lane] = largest[0];
        most[1][lane] = largest[1];
    });
    warp.quad_max(most[0]);
    warp.quad_max(most[1]);
    warp.each([&](int lane) {
        float total[2] = {0.0f, 0.0f}, from[2];
        for (int half = 0; half < 2; ++half)
            from[half] = most[half][lane] == minus_infinity() ? 0.0f : most[half][lane];
#pragma unroll
        for (int tile = 0; tile < strip_keys / 8; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& x = scores[lane].tiles[tile].x[i];
                x = power_of_two(x - from[i / 2]);
                total[i / 2] += x;
            }
#pragma unroll
        for (int i = 0; i < strip_keys / 16; ++i)
            set_weights<T>(weights[lane].of[i], scores[lane].tiles[2 * i], scores[lane].tiles[2 * i + 1]);
        sum[0][lane] = total[0];
        sum[1][lane] = total[1];
    });
    warp.quad_sum(sum[0]);
    warp.quad_sum(sum[1]);
    warp.each([&](int lane) { stats[lane] = {{most[0][lane], most[1][lane]}, {sum[0][lane], sum[1][lane]}}; });
}

// Whether values are so wide; kernels are made for a few widths.
template <class T>
static BLOOMBEE_HD bool has_group(const Task& task, int group) {
    return 8 * group * Width<T>::elements < task.value_dim;
}

// 128 bytes of each value, times their weights: tile j of eight columns is element j of each lane's 16 bytes, so column r of it is
// element elements * r + j of the 128 bytes.
template <class T>
struct Sums {
    Four tiles[Width<T>::elements];
};

template <class T>
static BLOOMBEE_HD Right<T> column(const Words* rows, int j) {
    if constexpr (sizeof(T) == 2) {
        Right<T> right;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const uint32_t first = rows[2 * k].w[j / 2], second = rows[2 * k + 1].w[j / 2];
#if defined(__CUDA_ARCH__)
            right.x[k] = __byte_perm(first, second, j % 2 ? 0x7632 : 0x5410);
#else
            right.x[k] = j % 2 ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
#endif
        }
        return right;
    } else {
        return {{rows[0].w[j], rows[1].w[j], rows[2].w[j], rows[3].w[j]}};
    }
}

template <class T, class Warp>
static BLOOMBEE_HD void sum_values(Warp& warp, const Task& task, const Band& band, const int* slots, int group,
                                   typename Warp::template Lanes<Weights<T>>& weights,
                                   typename Warp::template Lanes<Sums<T>>& sums) {
    const uint8_t* const values = task.values + band.head * task.value_head;
    const int bytes = task.value_dim * static_cast<int>(sizeof(T));
    warp.each([&](int lane) { sums[lane] = {}; });
#pragma unroll
    for (int step = 0; step < strip_keys / 16; ++step) {
        struct Rows {
            Words of[4];
        };
        typename Warp::template Lanes<Rows> rows;
        typename Warp::template Lanes<Left<T>> a;
        warp.each([&](int lane) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int slot = slots[16 * step + 8 * (k / 2) + 2 * (lane % 4) + k % 2];
                const uint8_t* const row = slot < 0 ? nullptr : values + static_cast<int64_t>(slot) * bytes;
                rows[lane].of[k] = load_part(row, 8 * group + lane / 4, bytes);
            }
            a[lane] = weights[lane].of[step];
        });
#pragma unroll
        for (int j = 0; j < Width<T>::elements; ++j) {
            typename Warp::template Lanes<Right<T>> b;
            warp.each([&](int lane) { b[lane] = column<T>(rows[lane].of, j); });
            warp.multiply(T{}, a, b, [&](int lane) -> Four& { return sums[lane].tiles[j]; });
        }
    }
}

// -- adding up ---------------------------------------------------------------------------------

// Of a lane's two pairs: what has been added up counts for so much, what comes for so much.
struct Factors {
    float kept[2], added[2];
};

static BLOOMBEE_HD Stats nothing() { return {{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}}; }

static BLOOMBEE_HD Factors join(Stats& total, const Stats& next) {
    Factors factors;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float most = larger(total.most[half], next.most[half]);
        const float from = most == minus_infinity() ? 0.0f : most;
        factors.kept[half] = power_of_two(total.most[half] - from);
        factors.added[half] = power_of_two(next.most[half] - from);
        total.most[half] = most;
        total.sum[half] = multiply_add(total.sum[half], factors.kept[half], next.sum[half] * factors.added[half]);
    }
    return factors;
}

static BLOOMBEE_HD void add(Four& total, const Four& next, const Factors& factors) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        total.x[i] = multiply_add(total.x[i], factors.kept[i / 2], next.x[i] * factors.added[i / 2]);
}

// What a lane's sums are multiplied by in the end: sinks count in the sum and have no value.
struct Ends {
    float by[2];
};

template <class T>
static BLOOMBEE_HD Ends finish(const Task& task, const Band& band, const Stats& total, int lane) {
    Ends ends;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = total.sum[half], kept = 1.0f;
        if (task.sinks != nullptr) {
            const int flat = band.first + lane / 4 + 8 * half, head = band.head * task.grouped() + flat % task.grouped();
            const float sink = value_of(reinterpret_cast<const T*>(task.sinks)[head]) * 1.4426950408889634f;
            const float most = larger(total.most[half], sink);
            kept = power_of_two(total.most[half] - most);
            sum = multiply_add(sum, kept, power_of_two(sink - most));
        }
        ends.by[half] = kept / sum;
    }
    return ends;
}

// Writes a lane's results of tile j of a group. (+ 0: a zero has no sign, as it may have got one where nothing was added.)
template <class T>
static BLOOMBEE_HD void store(const Task& task, const Band& band, int group, int j, const Four& total, const Ends& ends,
                              int lane) {
    constexpr int elements = Width<T>::elements;
    const int grouped = task.grouped();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int pair = lane / 4 + i / 2 * 8, flat = band.first + pair;
        const int at = (8 * group + 2 * (lane % 4) + i % 2) * elements + j;
        if (pair >= band.pairs || at >= task.value_dim) continue;
        const int64_t row = static_cast<int64_t>(band.item.row + flat / grouped) * task.heads;
        T* const out = reinterpret_cast<T*>(task.out) + (row + band.head * grouped + flat % grouped) * task.value_dim;
        put(out + at, total.x[i] * ends.by[i / 2] + 0.0f);
    }
}

// Zeros for padding.
template <class T>
static BLOOMBEE_HD void store_zeros(const Task& task, const Item& item, int head, int thread, int threads) {
    const int width = task.grouped() * task.value_dim;
    for (int i = thread; i < item.rows * width; i += threads) {
        const int64_t row = item.row + i / width;
        put(reinterpret_cast<T*>(task.out) + (row * task.kv_heads + head) * width + i % width, 0.0f);
    }
}

// Thread `index` of a step's storing: 16 bytes of one head's key or value.
static BLOOMBEE_HD void write_part(const WriteTask& task, int64_t index) {
    const int parts = (task.key_bytes + task.value_bytes) / 16, keys = task.key_bytes / 16;
    const int part = static_cast<int>(index % parts), head = static_cast<int>(index / parts % task.kv_heads);
    const int64_t row = index / parts / task.kv_heads, slot = task.slots[row];
    if (slot < 0) return;
    const bool is_key = part < keys;
    const int bytes = is_key ? task.key_bytes : task.value_bytes, at = 16 * (is_key ? part : part - keys);
    const uint8_t* const from = is_key ? task.keys + head * task.key_head + row * task.key_row
                                       : task.values + head * task.value_head + row * task.value_row;
    uint8_t* const to = (is_key ? task.held_keys : task.held_values) + (head * task.num_slots + slot) * bytes;
    *reinterpret_cast<Words*>(to + at) = load(from + at);
}

}  // namespace bloombee::attention
