// One unit of a message by a team of threads: what the CUDA kernels run, written so that the host runs it too.
//
// A unit is made in phases. In most of them every thread of the team does a share: `team.each(f)` calls f(rank) for
// every thread and lets them meet at the end, so that the next phase sees what this one wrote; on the host it is a loop.
// Between the two lies the coder, whose lanes must go step by step: `team.serial(f)` calls f(warp) for the team's first
// warp. In it `warp.each(f)` calls f(lane) for every lane and lets the lanes meet, `warp.step(f)` does not let them meet
// and is for what touches registers alone. Lane-private values are Warp::Lanes<T>: a register on the device, an array
// of 32 on the host. Outside of `each` and `step` all variables have the same value in all threads.
//
// The coder is a chain of dependent instructions, some 30 cycles a step where it encodes and some 110 where it decodes,
// so all that need not be in it is done in the other phases, and what it looks up lies in the memory of the team.
#pragma once

#include <type_traits>

#include "codec/rans_image.h"
#include "codec/rans_layout.h"

#if defined(__CUDACC__)
#define BLOOMBEE_UNROLL _Pragma("unroll")
#define BLOOMBEE_UNROLL_4 _Pragma("unroll 4")
#else
#define BLOOMBEE_UNROLL
#define BLOOMBEE_UNROLL_4
#endif

namespace bloombee::rans {

struct HostWarp {
    template <class T>
    struct Lanes {
        T values[max_lanes];
        T& operator[](int lane) { return values[lane]; }
    };
    template <class F>
    void each(F f) {
        for (int lane = 0; lane < max_lanes; ++lane) f(lane);
    }
    template <class F>
    void step(F f) {
        each(f);
    }
    uint32_t ballot(Lanes<bool>& set) {
        uint32_t mask = 0;
        for (int lane = 0; lane < max_lanes; ++lane) mask |= static_cast<uint32_t>(set[lane]) << lane;
        return mask;
    }
    void put_bits(uint32_t* word, uint32_t bits) { *word |= bits; }
};

// `threads`: a multiple of 32.
template <int threads>
struct HostTeam {
    static constexpr int size = threads;
    template <class F>
    void each(F f) {
        for (int rank = 0; rank < size; ++rank) f(rank);
    }
    template <class F>
    void serial(F f) {
        HostWarp warp;
        f(warp);
    }
    void add(uint32_t* sum, uint32_t x) { *sum += x; }  // in `each`, by whole warps
};

// A message being made or read. Pointers are of the side that runs. The message is aligned to 4, values to their size.
struct Job {
    Layout layout;
    UnitTables tables;
    int row_base;
    uint8_t* values;
    uint64_t stride;  // bytes between rows of values
    uint8_t* message;
};

// What the parts of a unit have in common.
struct UnitState {
    uint32_t states[max_lanes];
    uint32_t packed[max_lanes + 4];  // the final states as in the message
    uint8_t seeds[2 * max_lanes];    // decoding: what the states were seeded with
    uint32_t word_bytes, num_escapes, packed_bytes;
    uint32_t size;  // of the coded unit in the message
    uint32_t ok;    // decoding: it was no corrupt one
    uint32_t sum;   // for the caller
    uint64_t index, place;
};

// Memory that the threads of a team share, for units of at most n = 2^unit_log2 values.
struct UnitMemory {
    uint8_t* exponents;  // encoding: [n] by gathered position; the escapes follow from its end downwards
    uint8_t* symbols;    // [n] likewise; decoding: exponents without the channels' shifts
    uint8_t* bytes;      // [words_room], and before it `guard`: seed bytes, then words; decoding: the unit
    uint32_t* groups;    // [n / 64 + 1] table | base << 8 | first gathered position in the row << 16; then 0
    uint32_t* sums;      // [n / 64 + 1] of the exponents of rows
    uint8_t* escaped;    // encoding: [n / 32] whether a block of four steps has escapes
    UnitState* state;

    static constexpr uint32_t guard = 4 * 2 * max_lanes;  // decoding: what four steps may read before the words

    // A symbol takes 8 bits at most and less than 2^-6 of one for rounding (states are at least 2^15, so a division by
    // 256 loses less than 2^-7 of one); a state's own bits, and bytes to align.
    BLOOMBEE_HD static uint32_t words_room(int unit_log2) {
        const uint32_t n = 1u << unit_log2;
        return n + n / 64 + 4 * max_lanes + 64;
    }
    BLOOMBEE_HD static uint32_t num_bytes(int unit_log2, bool encoding) {
        const uint32_t n = 1u << unit_log2;
        const uint32_t parts = (encoding ? 2 * n : n) + guard + words_room(unit_log2) + n / group_values * 8 + n / 32 + 16;
        return (static_cast<uint32_t>(sizeof(UnitState)) + parts + 31) / 16 * 16;
    }
    // In [num_bytes], a multiple of 16, from `p` on, which is aligned to 16.
    BLOOMBEE_HD static UnitMemory at(uint8_t* p, int unit_log2, bool encoding) {
        const uint32_t n = 1u << unit_log2;
        UnitMemory m{};
        m.state = reinterpret_cast<UnitState*>(p);
        p += (sizeof(UnitState) + 15) / 16 * 16;
        m.symbols = p;
        p += n;
        m.exponents = p;
        if (encoding) p += n;
        m.bytes = p + guard;
        p += guard + words_room(unit_log2);
        m.groups = reinterpret_cast<uint32_t*>(p);
        m.sums = m.groups + n / group_values + 1;
        m.escaped = reinterpret_cast<uint8_t*>(m.sums + n / group_values + 1);
        return m;
    }
};

static BLOOMBEE_HD int set_bits(uint32_t mask) {
#if defined(__CUDA_ARCH__)
    return __popc(mask);
#else
    return std::popcount(mask);
#endif
}

static BLOOMBEE_HD uint32_t below(int lane) { return (1u << lane) - 1; }  // mask of the lanes before one

// Sums of the four bytes, each modulo 256.
static BLOOMBEE_HD uint32_t add_bytes(uint32_t a, uint32_t b) {
    return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}

// Likewise differences.
static BLOOMBEE_HD uint32_t subtract_bytes(uint32_t a, uint32_t b) {
    return ((a | 0x80808080u) - (b & 0x7f7f7f7fu)) ^ ((a ^ ~b) & 0x80808080u);
}

// 0xff in the bytes whose high bit is set, 0 in the others.
static BLOOMBEE_HD uint32_t byte_mask(uint32_t x) { return (x >> 7 & 0x01010101u) * 0xffu; }

static BLOOMBEE_HD uint32_t sum_of_bytes(uint32_t x) {
#if defined(__CUDA_ARCH__)
    return __dp4a(x, 0x01010101u, 0u);
#else
    return (x & 0xff) + (x >> 8 & 0xff) + (x >> 16 & 0xff) + (x >> 24);
#endif
}

// Bytes 0 and 2 of a, then of b.
static BLOOMBEE_HD uint32_t pack_halves(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(a, b, 0x6420);
#else
    return (a & 0xff) | (a >> 8 & 0xff00) | (b & 0xff) << 16 | (b << 8 & 0xff000000u);
#endif
}

// Bytes 2i and 2i + 1 as the low bytes of two halves.
static BLOOMBEE_HD uint32_t spread_bytes(uint32_t x, int i) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(x, 0, i ? 0x4342 : 0x4140);
#else
    return (x >> (16 * i) & 0xff) | (x >> (16 * i) & 0xff00) << 8;
#endif
}

static BLOOMBEE_HD int log_lanes(const Layout& a) { return a.lanes == 32 ? 5 : a.lanes == 16 ? 4 : 3; }

// Calls f with log_lanes as a type, so that it is known where the code is compiled.
template <class F>
static BLOOMBEE_HD void with_lanes(const Layout& a, F f) {
    if (a.lanes == 32)
        f(std::integral_constant<int, 5>());
    else if (a.lanes == 16)
        f(std::integral_constant<int, 4>());
    else
        f(std::integral_constant<int, 3>());
}

// Blocks of four steps.
static BLOOMBEE_HD uint32_t num_blocks(const Unit& u, int log_lanes) {
    return (u.coded() + (4u << log_lanes) - 1) >> (2 + log_lanes);
}

static BLOOMBEE_HD int steps_of_last_block(const Unit& u, int log_lanes) {
    return static_cast<int>(((u.coded() >> log_lanes) - 1) % 4 + 1);
}

// Of the first two steps of a block, and of the others.
struct BlockGroups {
    uint32_t of[2];
};

template <int log_lanes>
static BLOOMBEE_HD BlockGroups block_groups(const UnitMemory& m, uint32_t block) {
    const uint32_t* const groups = m.groups + (block << log_lanes >> 4);
    return {{groups[0], groups[log_lanes == 5]}};
}

// -- bytes -------------------------------------------------------------------------------------

// Four bytes from anywhere; on the device the word that they start in is read, and the next.
static BLOOMBEE_HD uint32_t word_at(const uint8_t* p) {
#if defined(__CUDA_ARCH__)
    const uint32_t shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) & 3);
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(p - shift);
    return __funnelshift_r(words[0], words[1], 8 * shift);
#else
    uint32_t word;
    std::memcpy(&word, p, 4);
    return word;
#endif
}

// A thread's share of copying n bytes between any two places; the words of the target are written whole.
static BLOOMBEE_HD void copy_share(int rank, int size, uint8_t* to, const uint8_t* from, uint32_t n) {
    const uint32_t skew = static_cast<uint32_t>(-reinterpret_cast<uintptr_t>(to)) & 3, head = skew < n ? skew : n;
    const uint32_t words = (n - head) / 4, tail = head + 4 * words, first = rank;
    uint32_t* const target = reinterpret_cast<uint32_t*>(to + head);
    if (((reinterpret_cast<uintptr_t>(to) ^ reinterpret_cast<uintptr_t>(from)) & 3) == 0) {
        const uint32_t* const source = reinterpret_cast<const uint32_t*>(from + head);
        BLOOMBEE_UNROLL_4 for (uint32_t i = first; i < words; i += size) target[i] = source[i];
    } else {
        BLOOMBEE_UNROLL_4 for (uint32_t i = first; i < words; i += size) target[i] = word_at(from + head + 4 * i);
    }
    if (first < head) to[first] = from[first];  // at most three bytes at either end
    if (first < n - tail) to[tail + first] = from[tail + first];
}

struct alignas(8) Bytes8 {
    uint32_t words[2];
};
struct alignas(16) Bytes16 {
    uint32_t words[4];
};

static BLOOMBEE_HD uint32_t byte_of(const uint32_t* words, int k) { return words[k / 4] >> (8 * (k % 4)) & 0xffu; }

// -- eight values ------------------------------------------------------------------------------

template <int dtype>
struct WordOf {
    using type = uint16_t;
};
template <>
struct WordOf<code_fp32> {
    using type = uint32_t;
};

// Values of neighbouring channels, as they lie in memory.
template <int dtype>
struct Eight {
    static constexpr int num_words = 8 * sizeof(typename WordOf<dtype>::type) / 4;
    uint32_t words[num_words];

    BLOOMBEE_HD uint32_t operator[](int k) const {
        if constexpr (dtype == code_fp32) return words[k];
        return words[k / 2] >> (16 * (k % 2)) & 0xffffu;
    }
    BLOOMBEE_HD void set(int k, uint32_t value) {  // once
        if constexpr (dtype == code_fp32)
            words[k] = value;
        else
            words[k / 2] |= value << (16 * (k % 2));
    }
};

// Exponents of values 4i to 4i + 3, a byte each.
template <int dtype>
static BLOOMBEE_HD uint32_t four_exponents(const Eight<dtype>& v, int i) {
    if constexpr (dtype == code_bf16) return pack_halves(v.words[2 * i] >> 7, v.words[2 * i + 1] >> 7);
    if constexpr (dtype == code_fp16) return pack_halves(v.words[2 * i] >> 10, v.words[2 * i + 1] >> 10) & 0x1f1f1f1fu;
    uint32_t four = 0;
    BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) four |= exponent_bits<dtype>(v[4 * i + k]) << (8 * k);
    return four;
}

// Likewise their seed bytes.
template <int dtype>
static BLOOMBEE_HD uint32_t four_seeds(const Eight<dtype>& v, int i) {
    const auto bf16 = [](uint32_t x) { return (x & 0x7f7f7f7fu) | (x >> 8 & 0x80808080u); };
    if constexpr (dtype == code_bf16) return pack_halves(bf16(v.words[2 * i]), bf16(v.words[2 * i + 1]));
    if constexpr (dtype == code_fp16) return pack_halves(v.words[2 * i], v.words[2 * i + 1]);
    uint32_t four = 0;
    BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) four |= seed_byte<dtype>(v[4 * i + k]) << (8 * k);
    return four;
}

// The part of eight values that exponents and seed bytes determine.
template <int dtype>
static BLOOMBEE_HD Eight<dtype> eight_of(const Bytes8& exponents, const Bytes8& seeds) {
    Eight<dtype> v{};
    if constexpr (dtype == code_fp32) {
        BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k)
            v.words[k] = value_of<dtype>(byte_of(exponents.words, k), byte_of(seeds.words, k));
        return v;
    }
    BLOOMBEE_UNROLL for (int i = 0; i < 4; ++i) {
        const uint32_t exponent = spread_bytes(exponents.words[i / 2], i % 2), seed = spread_bytes(seeds.words[i / 2], i % 2);
        v.words[i] = dtype == code_bf16 ? exponent << 7 | (seed & 0x7f007fu) | (seed & 0x800080u) << 8
                                        : (exponent & 0x1f001fu) << 10 | seed;
    }
    return v;
}

template <int dtype>
static BLOOMBEE_HD typename WordOf<dtype>::type* values_at(const Job& job, uint64_t row, uint64_t channel) {
    using Word = typename WordOf<dtype>::type;
    return reinterpret_cast<Word*>(job.values + row * job.stride) + channel;
}

// Whether eight values from a multiple of eight on can be moved in 16 bytes.
static BLOOMBEE_HD bool is_wide(const Job& job) {
    return ((reinterpret_cast<uintptr_t>(job.values) | job.stride) & 15) == 0;
}

// The first n of eight values; the others are 0.
template <int dtype>
static BLOOMBEE_HD Eight<dtype> load_eight(const typename WordOf<dtype>::type* from, int n, bool wide) {
    Eight<dtype> v{};
    if (wide && n == 8) {
        BLOOMBEE_UNROLL for (int k = 0; k < Eight<dtype>::num_words; k += 4) {
            const Bytes16 b = reinterpret_cast<const Bytes16*>(from)[k / 4];
            BLOOMBEE_UNROLL for (int i = 0; i < 4; ++i) v.words[k + i] = b.words[i];
        }
        return v;
    }
    BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) if (k < n) v.set(k, from[k]);
    return v;
}

template <int dtype>
static BLOOMBEE_HD void store_eight(typename WordOf<dtype>::type* to, const Eight<dtype>& v, int n, bool wide) {
    if (wide && n == 8) {
        BLOOMBEE_UNROLL for (int k = 0; k < Eight<dtype>::num_words; k += 4) reinterpret_cast<Bytes16*>(to)[k / 4] = {
            {v.words[k], v.words[k + 1], v.words[k + 2], v.words[k + 3]}};
        return;
    }
    BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) if (k < n) to[k] = static_cast<typename WordOf<dtype>::type>(v[k]);
}

// Eight channels of a row that one thread takes; a warp takes a tile. Tasks of a unit are numbered by row, then tile.
struct Task8 {
    uint32_t row, channel;  // both in the unit
    int n;                  // of the eight that are there; may be 0
};

static BLOOMBEE_HD uint32_t num_tasks(const Unit& u) {
    return u.num_rows * ((u.num_channels + tile_channels - 1) / tile_channels);
}

static BLOOMBEE_HD Task8 task8(const Unit& u, uint32_t task, int lane) {
    const uint32_t tiles = (u.num_channels + tile_channels - 1) / tile_channels, row = tiles == 1 ? task : task / tiles;
    const uint32_t channel = (task - row * tiles) * tile_channels + 8 * lane;
    const int left = static_cast<int>(u.num_channels) - static_cast<int>(channel);
    return {row, channel, left < 0 ? 0 : left < 8 ? left : 8};
}

// -- rows --------------------------------------------------------------------------------------

static BLOOMBEE_HD int row_offset(const Job& job, uint32_t sum) {
    const Layout& a = job.layout;
    if (a.row_bits == 0) return 0;
    const uint32_t d = static_cast<uint32_t>(a.channels), mean = (8 * sum + d) / (2 * d);
    const int most = a.row_bits == 8 ? 127 : 7, offset = static_cast<int>(mean) - job.row_base;
    return offset < -most - 1 ? -most - 1 : offset > most ? most : offset;
}

static BLOOMBEE_HD int offset_at(const Job& job, uint64_t row) {
    const uint8_t* offsets = job.message + job.layout.row_offsets;
    if (job.layout.row_bits == 8) return offsets[row] - 128;
    if (job.layout.row_bits == 4) return (offsets[row / 2] >> (row % 2 * 4) & 15) - 8;
    return 0;
}

// Adds the exponents of a whole row.
template <int dtype, class Team>
static BLOOMBEE_HD void sum_row(Team& team, const Job& job, uint64_t row, uint32_t* sum) {
    const int d = static_cast<int>(job.layout.channels);
    const bool wide = is_wide(job);
    team.each([&](int rank) {
        uint32_t mine = 0;
        for (int c = 8 * rank; c < d; c += 8 * Team::size) {
            const Eight<dtype> v = load_eight<dtype>(values_at<dtype>(job, row, c), d - c < 8 ? d - c : 8, wide);
            mine += sum_of_bytes(four_exponents<dtype>(v, 0)) + sum_of_bytes(four_exponents<dtype>(v, 1));
        }
        team.add(sum, mine);
    });
}

// Where a group of a row is among the tables; its base is the start of its window without the channels' shifts.
static BLOOMBEE_HD uint32_t group_place(const UnitTables& t, const Unit& u, uint32_t group, int offset) {
    const uint32_t whole = u.first_channel / group_values + group;
    const int at = t.phase[whole] + offset;
    const uint32_t table = t.cluster[whole] * 4u + (static_cast<uint32_t>(at) & 3u);
    const uint32_t base = (static_cast<uint32_t>(at >> 2) + t.window[table]) & 0xffu;  // plus low
    return table | base << 8 | group * group_values << 16;
}

// -- encoding ----------------------------------------------------------------------------------

// Takes eight values apart: exponents and seed bytes to the team's memory, what else there is to the message.
template <int dtype>
static BLOOMBEE_HD uint32_t split_eight(const Job& job, const Unit& u, const Task8& at, const Eight<dtype>& v, UnitMemory& m) {
    const Layout& a = job.layout;
    const uint64_t row = u.first_row + at.row, channel = uint64_t{u.first_channel} + at.channel;
    const Bytes8 inverse = *reinterpret_cast<const Bytes8*>(job.tables.inverse + channel);
    uint8_t* const exponents = m.exponents + (at.row * u.groups() * group_values + at.channel / tile_channels * tile_channels);
    const uint32_t packed[2] = {four_exponents<dtype>(v, 0), four_exponents<dtype>(v, 1)};
    const uint32_t seeds[2] = {four_seeds<dtype>(v, 0), four_seeds<dtype>(v, 1)};
    BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k)
        if (k < at.n) exponents[byte_of(inverse.words, k)] = static_cast<uint8_t>(byte_of(packed, k));
    uint8_t* const to = m.bytes + at.row * u.num_channels + at.channel;
    if (u.num_channels % 8 == 0)
        *reinterpret_cast<Bytes8*>(to) = {{seeds[0], seeds[1]}};
    else
        BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) if (k < at.n) to[k] = static_cast<uint8_t>(byte_of(seeds, k));
    if constexpr (dtype == code_fp16) {
        const uint64_t bytes = Layout::bitmap_bytes(a.channels);
        for (int map = 0; map < 3; ++map) {
            uint32_t bits = 0;
            BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) bits |= (v[k] >> fp16_bit(map) & 1u) << k;
            job.message[a.bitmaps + (3 * row + map) * bytes + channel / 8] = static_cast<uint8_t>(bits);
        }
    }
    if constexpr (dtype == code_fp32) {
        uint8_t* const planes = job.message + row * a.channels + channel;
        BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) {
            if (a.has_plane1 && k < at.n) planes[a.plane1 + k] = static_cast<uint8_t>(v[k] >> 8);
            if (a.has_plane0 && k < at.n) planes[a.plane0 + k] = static_cast<uint8_t>(v[k]);
        }
    }
    return sum_of_bytes(packed[0]) + sum_of_bytes(packed[1]);
}

template <int dtype, class Team>
static BLOOMBEE_HD void split_unit(Team& team, const Job& job, const Unit& u, UnitMemory& m) {
    constexpr int batch = dtype == code_fp32 || Team::size > max_lanes ? 2 : 4;  // loads under way
    constexpr uint32_t warps = Team::size / max_lanes;
    const bool wide = is_wide(job), sums = job.layout.row_bits != 0 && job.layout.segments == 1;
    const uint32_t tasks = num_tasks(u);
    team.each([&](int rank) {
        for (uint32_t i = rank; i <= u.num_rows; i += Team::size) m.sums[i] = 0;
        for (uint32_t i = rank; i < num_blocks(u, log_lanes(job.layout)); i += Team::size) m.escaped[i] = 0;
    });
    team.each([&](int rank) {
        for (uint32_t first = rank / max_lanes; first < tasks; first += warps * batch) {
            Eight<dtype> v[batch];
            BLOOMBEE_UNROLL for (int b = 0; b < batch; ++b) {
                const Task8 at = task8(u, first + b * warps, rank % max_lanes);
                if (first + b * warps < tasks)
                    v[b] = load_eight<dtype>(values_at<dtype>(job, u.first_row + at.row, u.first_channel + at.channel), at.n, wide);
            }
            BLOOMBEE_UNROLL for (int b = 0; b < batch; ++b) {
                if (first + b * warps >= tasks) break;
                const Task8 at = task8(u, first + b * warps, rank % max_lanes);
                const uint32_t sum = at.n > 0 ? split_eight<dtype>(job, u, at, v[b], m) : 0;
                if (sums) team.add(&m.sums[at.row], sum);
            }
        }
    });
}

// Row offsets, and where each group is among the tables.
template <int dtype, class Team>
static BLOOMBEE_HD void place_groups(Team& team, const Job& job, const Unit& u, UnitMemory& m) {
    const Layout& a = job.layout;
    const uint64_t after = u.first_row + u.num_rows;
    if (a.row_bits != 0 && a.segments > 1) sum_row<dtype>(team, job, u.first_row, m.sums);
    // Two rows share a byte at 4 bits: the even one writes it, though its neighbour may be another unit's.
    if (a.row_bits == 4 && u.first_channel == 0 && after % 2 == 1 && after < a.rows)
        sum_row<dtype>(team, job, after, m.sums + u.num_rows);
    const uint32_t groups = u.groups(), num = u.num_rows * groups;
    team.each([&](int rank) {
        for (uint32_t i = rank; i < num; i += Team::size) {
            const uint32_t row = i / groups;
            m.groups[i] = group_place(job.tables, u, i - row * groups, row_offset(job, m.sums[row]));
        }
        if (rank == 0) m.groups[num] = 0;
        uint8_t* const offsets = job.message + a.row_offsets;
        for (uint32_t i = rank; u.first_channel == 0 && i < u.num_rows; i += Team::size) {
            const uint64_t row = u.first_row + i;
            const int offset = row_offset(job, m.sums[i]);
            if (a.row_bits == 8) offsets[row] = static_cast<uint8_t>(offset + 128);
            if (a.row_bits == 4 && row % 2 == 0) {
                const int next = row + 1 < a.rows ? row_offset(job, m.sums[i + 1]) + 8 : 0;
                offsets[row / 2] = static_cast<uint8_t>((offset + 8) | next << 4);
            }
        }
    });
}

// symbol_of for four neighbours of a group, whose windows start at `starts`; `window` as in TableImage.
static BLOOMBEE_HD uint32_t four_symbols(uint32_t exponents, uint32_t starts, uint32_t window) {
    const uint32_t index = subtract_bytes(exponents, starts);
    const uint32_t size = 0x80 - (window >> 8 & 0xff);  // the high bit shows what is not below the window's size
    const uint32_t outside = byte_mask(((index & 0x7f7f7f7fu) + size * 0x01010101u) | index);
    const uint32_t symbols = ((index & ~outside) + 0x01010101u) & ~outside;
    if ((window >> 16 & 0xff) == 0) return symbols;
    const uint32_t zero = byte_mask(~(((exponents & 0x7f7f7f7fu) + 0x7f7f7f7fu) | exponents));
    return (symbols & ~zero) | (zero_symbol * 0x01010101u & zero);
}

// Four symbols from gathered position j on, of which those from num_channels on are padding.
static BLOOMBEE_HD uint32_t with_fill(uint32_t symbols, uint32_t num_channels, uint32_t j, uint32_t fill) {
    if (j + 4 <= num_channels) return symbols;
    const uint32_t is_there = j >= num_channels ? 0 : (1u << (8 * (num_channels - j))) - 1;
    return (symbols & is_there) | (fill * 0x01010101u & ~is_there);
}

// Exponents -> symbols, and the seed bytes to the message.
template <class Team>
static BLOOMBEE_HD void to_symbols(Team& team, const Job& job, const Unit& u, UnitMemory& m, const uint32_t* windows) {
    const int log = log_lanes(job.layout);
    const Bytes16* const exponents = reinterpret_cast<const Bytes16*>(m.exponents);
    const Bytes16* const shifts = reinterpret_cast<const Bytes16*>(job.tables.shift + u.first_channel);
    team.each([&](int rank) {
        for (uint32_t i = rank; i < u.coded() / 16; i += Team::size) {
            const uint32_t group = m.groups[i / (group_values / 16)], window = windows[group & 0xff];
            const uint32_t j = (group >> 16) + 16 * i % group_values, base = (group >> 8 & 0xff) * 0x01010101u;
            const Bytes16 exponent = exponents[i], shift = shifts[j / 16];  // j: gathered position in the row
            Bytes16 symbols;
            uint32_t escaped = 0;
            BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) {
                symbols.words[k] = four_symbols(exponent.words[k], add_bytes(shift.words[k], base), window);
                if (j + 16 > u.num_channels) symbols.words[k] = with_fill(symbols.words[k], u.num_channels, j + 4 * k, window >> 24);
                escaped |= (symbols.words[k] - 0x01010101u) & ~symbols.words[k];  // the high bit of one shows a byte that is 0
            }
            if (escaped & 0x80808080u) m.escaped[16 * i >> (2 + log)] = 1;
            reinterpret_cast<Bytes16*>(m.symbols)[i] = symbols;
        }
        copy_share(rank, Team::size, job.message + u.seed_plane, m.bytes + u.seeds, u.values() - u.seeds);
    });
}

// Puts the escapes of a block's first `steps` steps before those there are; returns how many.
template <int log, class Warp>
static BLOOMBEE_HD uint32_t put_escapes(Warp& warp, const UnitMemory& m, uint32_t block, int steps, uint8_t* escapes) {
    typename Warp::template Lanes<uint32_t> exponent;
    typename Warp::template Lanes<bool> set;
    uint32_t num = 0;
    while (steps-- > 0) {
        const uint32_t first = (4 * block + steps) << log;
        warp.each([&](int lane) {
            set[lane] = lane >> log == 0 && m.symbols[first + lane] == escape_symbol;
            exponent[lane] = set[lane] ? m.exponents[first + lane] : 0;
        });
        const uint32_t escaped = warp.ballot(set);
        num += set_bits(escaped);
        // Never before a place that is yet to be read: there are at least as many positions as escapes.
        warp.each([&](int lane) {
            if (set[lane]) *(escapes - num + set_bits(escaped & below(lane))) = static_cast<uint8_t>(exponent[lane]);
        });
    }
    return num;
}

// Of a lane's symbols in a block of four steps.
struct BlockEntries {
    EncodeEntry of[4];
};

template <int log>
static BLOOMBEE_HD BlockEntries block_entries(const UnitMemory& m, const EncodeEntry* tables, uint32_t block, int lane) {
    BlockEntries b{};
    if (lane >> log) return b;
    const BlockGroups groups = block_groups<log>(m, block);
    BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) {
        const uint32_t symbol = m.symbols[((4 * block + k) << log) + lane] % num_symbols;  // after the last one anything
        b.of[k] = tables[(groups.of[k / 2] & 0xff) * num_symbols + symbol];
    }
    return b;
}

// The coder of 2^log lanes: words to m.bytes, escapes to the end of m.exponents, states to m.state.
template <int log, class Warp>
static BLOOMBEE_HD void encode_symbols(Warp& warp, const Unit& u, UnitMemory& m, const EncodeEntry* tables) {
    typename Warp::template Lanes<uint32_t> state;
    typename Warp::template Lanes<BlockEntries> now, next;
    typename Warp::template Lanes<bool> set;
    uint16_t* const words = reinterpret_cast<uint16_t*>(m.bytes);
    uint16_t* end = words;
    uint32_t num_escapes = 0, block = num_blocks(u, log);
    warp.each([&](int lane) {
        state[lane] = 1u << 16;
        for (uint32_t k = 0; k < 2; ++k)
            if (lane >> log == 0 && 2 * lane + k < u.seeds)
                state[lane] |= static_cast<uint32_t>(m.bytes[2 * lane + k]) << (8 * k);
        next[lane] = block_entries<log>(m, tables, block - 1, lane);
    });
    const auto step = [&](int k) {
        warp.step([&](int lane) { set[lane] = lane >> log == 0 && encode_needs_word(state[lane], now[lane].of[k].entry); });
        const uint32_t needs = warp.ballot(set);
        warp.step([&](int lane) {
            if (set[lane]) end[set_bits(needs & below(lane))] = static_cast<uint16_t>(state[lane]);
            state[lane] = encode_step(set[lane] ? state[lane] >> 16 : state[lane], now[lane].of[k].entry,
                                      now[lane].of[k].reciprocal);
        });
        end += set_bits(needs);
    };
    const auto begin_block = [&](int steps) {
        block -= 1;
        warp.step([&](int lane) {
            now[lane] = next[lane];
            next[lane] = block_entries<log>(m, tables, block > 0 ? block - 1 : 0, lane);
        });
        if (m.escaped[block]) num_escapes += put_escapes<log>(warp, m, block, steps, m.exponents + u.coded() - num_escapes);
    };
    if (const int steps = steps_of_last_block(u, log); steps < 4) {
        begin_block(steps);
        BLOOMBEE_UNROLL for (int k = 2; k >= 0; --k) if (k < steps) step(k);
    }
    while (block > 0) {
        begin_block(4);
        BLOOMBEE_UNROLL for (int k = 3; k >= 0; --k) step(k);
    }
    warp.each([&](int lane) {
        m.state->states[lane] = state[lane];
        if (lane != 0) return;
        m.state->word_bytes = static_cast<uint32_t>(2 * (end - words));
        m.state->num_escapes = num_escapes;
    });
}

// Fills state.packed from state.states; returns how many bytes.
template <class Warp>
static BLOOMBEE_HD uint32_t pack_states(Warp& warp, int lanes, UnitState& state) {
    typename Warp::template Lanes<uint32_t> length;
    typename Warp::template Lanes<bool> set;
    typename Warp::template Lanes<uint32_t> at;
    uint32_t total = 15 * lanes;
    warp.each([&](int lane) {
        state.packed[lane] = 0;
        length[lane] = lane < lanes ? static_cast<uint32_t>(bit_length(state.states[lane])) - 16 : 0;
        at[lane] = 15 * lane;
    });
    BLOOMBEE_UNROLL for (int bit = 0; bit < 4; ++bit) {
        warp.step([&](int lane) { set[lane] = length[lane] >> bit & 1; });
        const uint32_t ones = warp.ballot(set);
        total += static_cast<uint32_t>(set_bits(ones)) << bit;
        warp.step([&](int lane) { at[lane] += static_cast<uint32_t>(set_bits(ones & below(lane))) << bit; });
    }
    warp.each([&](int lane) {
        if (lane >= lanes) return;
        const uint32_t n = 15 + length[lane];
        const uint64_t bits = static_cast<uint64_t>(state.states[lane] & ((1u << n) - 1)) << (at[lane] % 32);
        warp.put_bits(&state.packed[at[lane] / 32], static_cast<uint32_t>(bits));
        if (bits >> 32) warp.put_bits(&state.packed[at[lane] / 32 + 1], static_cast<uint32_t>(bits >> 32));
    });
    uint8_t* const lengths = reinterpret_cast<uint8_t*>(state.packed) + (total + 7) / 8;
    warp.each([&](int lane) {
        if (lane < lanes && lane % 2 == 0)
            lengths[lane / 2] =
                static_cast<uint8_t>(length[lane] | (static_cast<uint32_t>(bit_length(state.states[lane + 1])) - 16) << 4);
    });
    return (total + 7) / 8 + static_cast<uint32_t>(lanes) / 2;
}

// Codes a unit: its planes and row offsets go to the message, the rest stays in `m`, sizes in m.state. `windows` and
// `tables` are those of job.tables, or copies nearer by.
template <int dtype, class Team>
static BLOOMBEE_HD void encode_unit(Team& team, const Job& job, const Unit& u, UnitMemory& m, const uint32_t* windows,
                                    const EncodeEntry* tables) {
    split_unit<dtype>(team, job, u, m);
    place_groups<dtype>(team, job, u, m);
    to_symbols(team, job, u, m, windows);
    team.serial([&](auto& warp) {
        with_lanes(job.layout, [&](auto log) { encode_symbols<decltype(log)::value>(warp, u, m, tables); });
        UnitState& s = *m.state;
        const uint32_t packed = pack_states(warp, job.layout.lanes, s);
        warp.each([&](int lane) {
            if (lane != 0) return;
            s.packed_bytes = packed;
            const uint32_t tail = s.num_escapes + packed, plain = u.seeds + u.values();
            s.size = s.word_bytes + tail + (tail & 1);
            if (s.size >= plain + (plain & 1) || s.num_escapes >= raw_unit) {
                s.num_escapes = raw_unit;
                s.size = plain + (plain & 1);
            }
        });
    });
}

// Puts a coded unit into its place.
template <int dtype, class Team>
static BLOOMBEE_HD void place_unit(Team& team, const Job& job, const Unit& u, const UnitMemory& m, uint8_t* to) {
    const UnitState& s = *m.state;
    if (s.num_escapes == raw_unit) {
        team.each([&](int rank) {
            for (uint32_t i = rank; i < u.values(); i += Team::size) {
                const uint32_t value = *values_at<dtype>(job, u.first_row + i / u.num_channels, u.first_channel + i % u.num_channels);
                if (i < u.seeds) to[i] = static_cast<uint8_t>(seed_byte<dtype>(value));
                to[u.seeds + i] = static_cast<uint8_t>(exponent_bits<dtype>(value));
            }
            if (rank == 0 && (u.seeds + u.values()) % 2) to[s.size - 1] = 0;
        });
        return;
    }
    uint8_t* const tail = to + (s.size - s.num_escapes - s.packed_bytes);
    team.each([&](int rank) {
        copy_share(rank, Team::size, to, m.bytes, s.word_bytes);
        if (rank == 0 && tail > to + s.word_bytes) to[s.word_bytes] = 0;
        copy_share(rank, Team::size, tail, m.exponents + u.coded() - s.num_escapes, s.num_escapes);
        copy_share(rank, Team::size, tail + s.num_escapes, reinterpret_cast<const uint8_t*>(s.packed), s.packed_bytes);
    });
}

// -- decoding ----------------------------------------------------------------------------------

// Reads the states from the end of a unit; returns where they start, nullptr if they do not fit.
template <class Warp>
static BLOOMBEE_HD const uint8_t* unpack_states(Warp& warp, const uint8_t* begin, const uint8_t* end, int lanes,
                                                typename Warp::template Lanes<uint32_t>& state) {
    if (end - begin < lanes / 2) return nullptr;
    const uint8_t* const lengths = end - lanes / 2;
    typename Warp::template Lanes<uint32_t> length, at;
    typename Warp::template Lanes<bool> set;
    uint32_t total = 15 * lanes;
    warp.step([&](int lane) {
        length[lane] = lane < lanes ? lengths[lane / 2] >> (lane % 2 * 4) & 15u : 0;
        at[lane] = 15 * lane;
    });
    BLOOMBEE_UNROLL for (int bit = 0; bit < 4; ++bit) {
        warp.step([&](int lane) { set[lane] = length[lane] >> bit & 1; });
        const uint32_t ones = warp.ballot(set);
        total += static_cast<uint32_t>(set_bits(ones)) << bit;
        warp.step([&](int lane) { at[lane] += static_cast<uint32_t>(set_bits(ones & below(lane))) << bit; });
    }
    if (lengths - begin < static_cast<int64_t>((total + 7) / 8)) return nullptr;
    const uint8_t* const start = lengths - (total + 7) / 8;
    if (total % 8 && lengths[-1] >> (total % 8)) return nullptr;
    warp.step([&](int lane) {
        state[lane] = 0;
        if (lane >= lanes) return;
        const uint32_t n = 15 + length[lane], first = at[lane] / 8, last = (at[lane] + n - 1) / 8;
        uint64_t bits = 0;
        for (uint32_t k = first; k <= last; ++k) bits |= uint64_t{start[k]} << (8 * (k - first));
        state[lane] = 1u << n | (static_cast<uint32_t>(bits >> (at[lane] % 8)) & ((1u << n) - 1));
    });
    return start;
}

// What a unit's decoder takes its escapes from.
struct Escapes {
    const uint8_t *next, *end;
};

// What a lane has looked up in a block of four steps.
struct BlockSlots {
    uint32_t of[4];
};

// Puts the exponents of a block's first `steps` steps right that were escapes or 0. False: too few escapes.
template <int log, class Warp>
static BLOOMBEE_HD bool take_escapes(Warp& warp, const Job& job, const Unit& u, const UnitMemory& m, uint32_t block, int steps,
                                     typename Warp::template Lanes<BlockSlots>& slots, Escapes& escapes) {
    const uint8_t* const shift = job.tables.shift + u.first_channel;
    typename Warp::template Lanes<uint32_t> position;
    typename Warp::template Lanes<bool> set;
    BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) {
        if (k >= steps) break;
        const uint32_t first = (4 * block + k) << log, row_start = m.groups[first / group_values] >> 16;
        warp.step([&](int lane) {
            position[lane] = row_start + (first + lane) % group_values;
            const bool is_there = lane >> log == 0 && position[lane] < u.num_channels;
            set[lane] = is_there && index_of(slots[lane].of[k]) == escape_index;
        });
        const uint32_t escaped = warp.ballot(set);
        if (escapes.end - escapes.next < set_bits(escaped)) return false;
        warp.step([&](int lane) {
            if (!set[lane] && (lane >> log || index_of(slots[lane].of[k]) != zero_index)) return;
            const uint32_t exponent = set[lane] ? escapes.next[set_bits(escaped & below(lane))] : 0;
            m.symbols[first + lane] = static_cast<uint8_t>(exponent - shift[position[lane]]);
        });
        escapes.next += set_bits(escaped);
    }
    return true;
}

// The coder of 2^log lanes: exponents without the channels' shifts to m.symbols. False: the unit is corrupt.
template <int log, class Warp>
static BLOOMBEE_HD bool decode_symbols(Warp& warp, const Job& job, const Unit& u, UnitMemory& m, const uint32_t* tables,
                                       typename Warp::template Lanes<uint32_t>& state, const uint16_t* words, int num_words,
                                       Escapes escapes) {
    typename Warp::template Lanes<BlockSlots> slots;
    typename Warp::template Lanes<bool> set;
    const uint16_t* end = words + num_words;  // of those not taken yet
    uint32_t block = 0;
    const auto step = [&](int k, uint32_t group) {
        const uint32_t* const table = tables + (group & 0xff) * 256;
        uint8_t* const to = m.symbols + ((4 * block + k) << log);
        warp.step([&](int lane) {
            const uint32_t slot = table[state[lane] & 0xff];
            slots[lane].of[k] = slot;
            state[lane] = (slot & 0xff) * (state[lane] >> 8) + (slot >> 24);
            set[lane] = lane >> log == 0 && state[lane] < state_low;
        });
        const uint32_t needs = warp.ballot(set);
        warp.step([&](int lane) {
            if (set[lane]) state[lane] = state[lane] << 16 | *(end - set_bits(needs >> lane));
            if (lane >> log == 0) to[lane] = static_cast<uint8_t>(index_of(slots[lane].of[k]) + (group >> 8));
        });
        end -= set_bits(needs);
    };
    const auto end_block = [&](int steps) {
        if (end < words) return false;
        warp.step([&](int lane) {
            uint32_t all = 0;
            BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) all |= k < steps ? slots[lane].of[k] : 0;
            set[lane] = lane >> log == 0 && (index_of(all) & 0x80) != 0;
        });
        return warp.ballot(set) == 0 || take_escapes<log>(warp, job, u, m, block, steps, slots, escapes);
    };
    const int steps = steps_of_last_block(u, log);
    BlockGroups next = block_groups<log>(m, 0);
    for (const uint32_t whole = num_blocks(u, log) - (steps < 4); block < whole; ++block) {
        const BlockGroups groups = next;
        next = block_groups<log>(m, block + 1);  // before it is needed; of the block after the last anything
        BLOOMBEE_UNROLL for (int k = 0; k < 4; ++k) step(k, groups.of[k / 2]);
        if (!end_block(4)) return false;
    }
    if (steps < 4) {
        BLOOMBEE_UNROLL for (int k = 0; k < 3; ++k) if (k < steps) step(k, next.of[k / 2]);
        if (!end_block(steps)) return false;
    }
    warp.step([&](int lane) {
        set[lane] = lane >> log == 0 && state[lane] >> 16 != 1;
        for (int k = 0; k < 2 && lane >> log == 0; ++k) {
            const uint8_t seed = static_cast<uint8_t>(state[lane] >> (8 * k));
            m.state->seeds[2 * lane + k] = seed;
            set[lane] = set[lane] || (2 * lane + k >= static_cast<int>(u.seeds) && seed != 0);
        }
    });
    return warp.ballot(set) == 0 && end == words && escapes.next == escapes.end;
}

// The first n of eight bytes of the message.
static BLOOMBEE_HD Bytes8 message_bytes(const uint8_t* from, int n) {
    if (n == 8) return {{word_at(from), word_at(from + 4)}};
    Bytes8 b{};
    BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) if (k < n) b.words[k / 4] |= static_cast<uint32_t>(from[k]) << (8 * (k % 4));
    return b;
}

// Seed bytes of eight values, the first of which is value i of the unit.
static BLOOMBEE_HD Bytes8 seeds_of(const Job& job, const Unit& u, const uint8_t* first_seeds, uint32_t i, int n) {
    if (i >= u.seeds) return message_bytes(job.message + u.seed_plane + (i - u.seeds), n);
    Bytes8 b{};
    BLOOMBEE_UNROLL for (uint32_t k = 0; k < 8; ++k) if (static_cast<int>(k) < n)
        b.words[k / 4] |= static_cast<uint32_t>(i + k < u.seeds ? first_seeds[i + k]
                                                                : job.message[u.seed_plane + (i + k - u.seeds)])
                          << (8 * (k % 4));
    return b;
}

// Adds what exponents and seed bytes do not say.
template <int dtype>
static BLOOMBEE_HD void add_rest(const Job& job, uint64_t row, uint64_t channel, int n, Eight<dtype>& v) {
    const Layout& a = job.layout;
    if constexpr (dtype == code_fp16) {
        const uint64_t bytes = Layout::bitmap_bytes(a.channels);
        for (int map = 0; map < 3; ++map) {
            const uint32_t bits = job.message[a.bitmaps + (3 * row + map) * bytes + channel / 8];
            BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) v.set(k, (bits >> k & 1) << fp16_bit(map));
        }
    }
    if constexpr (dtype == code_fp32) {
        const uint8_t* const planes = job.message + row * a.channels + channel;
        const Bytes8 high = a.has_plane1 ? message_bytes(planes + a.plane1, n) : Bytes8{};
        const Bytes8 low = a.has_plane0 ? message_bytes(planes + a.plane0, n) : Bytes8{};
        BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) v.words[k] |= byte_of(high.words, k) << 8 | byte_of(low.words, k);
    }
}

// Puts the values of a unit together. `raw`: its exponents as they lie in the message; else they are m.symbols.
template <int dtype, class Team>
static BLOOMBEE_HD void join_unit(Team& team, const Job& job, const Unit& u, const UnitMemory& m, const uint8_t* raw,
                                  const uint8_t* first_seeds) {
    const bool wide = is_wide(job);
    team.each([&](int rank) {
        for (uint32_t task = rank / max_lanes; task < num_tasks(u); task += Team::size / max_lanes) {
            const Task8 at = task8(u, task, rank % max_lanes);
            if (at.n == 0) continue;
            const uint32_t i = at.row * u.num_channels + at.channel;
            const uint64_t row = u.first_row + at.row, channel = uint64_t{u.first_channel} + at.channel;
            const Bytes8 seeds = seeds_of(job, u, first_seeds, i, at.n);
            Bytes8 exponents{};
            if (raw) {
                exponents = message_bytes(raw + i, at.n);
            } else {
                const Bytes8 inverse = *reinterpret_cast<const Bytes8*>(job.tables.inverse + channel);
                const Bytes8 shift = *reinterpret_cast<const Bytes8*>(job.tables.channel_shift + channel);
                const uint32_t tile = at.row * u.groups() * group_values + at.channel / tile_channels * tile_channels;
                BLOOMBEE_UNROLL for (int k = 0; k < 8; ++k) if (k < at.n)
                    exponents.words[k / 4] |= static_cast<uint32_t>(m.symbols[tile + byte_of(inverse.words, k)])
                                              << (8 * (k % 4));
                BLOOMBEE_UNROLL for (int k = 0; k < 2; ++k) exponents.words[k] = add_bytes(exponents.words[k], shift.words[k]);
            }
            Eight<dtype> v = eight_of<dtype>(exponents, seeds);
            add_rest<dtype>(job, row, channel, at.n, v);
            store_eight<dtype>(values_at<dtype>(job, row, channel), v, at.n, wide);
        }
    });
}

// The unit in [begin, begin + size), whose first bytes lie at `near` too: `whole`, or else as many as words may have.
template <class Warp>
static BLOOMBEE_HD bool decode_coded(Warp& warp, const Job& job, const Unit& u, UnitMemory& m, const uint32_t* tables,
                                     const uint8_t* begin, uint32_t size, uint32_t num_escapes, const uint8_t* near,
                                     uint32_t near_bytes) {
    typename Warp::template Lanes<uint32_t> state;
    const uint8_t* const from = near_bytes == size ? near : begin;
    const uint8_t* const packed = unpack_states(warp, from, from + size, job.layout.lanes, state);
    if (!packed || packed - from < static_cast<int64_t>(num_escapes)) return false;
    const uint8_t* const escapes = packed - num_escapes;
    const int num_words = static_cast<int>((escapes - from) / 2);
    if (2 * num_words > static_cast<int>(near_bytes)) return false;  // more than the symbols can take
    bool ok = false;
    with_lanes(job.layout, [&](auto log) {
        ok = decode_symbols<decltype(log)::value>(warp, job, u, m, tables, state, reinterpret_cast<const uint16_t*>(near),
                                                  num_words, {escapes, packed});
    });
    return ok;
}

// Decodes the unit of `size` bytes at `begin`, which is even, into the values. m.state->ok says afterwards whether it was
// no corrupt one; if it was, the values are undefined. `tables` are those of job.tables, or a copy nearer by.
template <int dtype, class Team>
static BLOOMBEE_HD void decode_unit(Team& team, const Job& job, const Unit& u, const uint8_t* begin, uint32_t size,
                                    uint32_t num_escapes, int unit_log2, UnitMemory& m, const uint32_t* tables) {
    if (num_escapes == raw_unit) {
        const uint32_t plain = u.seeds + u.values();
        const bool ok = size == plain + (plain & 1);
        if (ok) join_unit<dtype>(team, job, u, m, begin + u.seeds, begin);
        team.each([&](int rank) {
            if (rank == 0) m.state->ok = ok;
        });
        return;
    }
    const uint32_t skew = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(begin) & 3);
    const uint32_t room = UnitMemory::words_room(unit_log2) - skew, near_bytes = size < room ? size : room;
    uint8_t* const near = m.bytes + skew;
    const uint32_t groups = u.groups(), num = u.num_rows * groups;
    team.each([&](int rank) {
        copy_share(rank, Team::size, near, begin, near_bytes);
        for (uint32_t i = rank; i < num; i += Team::size) {
            const uint32_t row = i / groups;
            m.groups[i] = group_place(job.tables, u, i - row * groups, offset_at(job, u.first_row + row));
        }
        if (rank == 0) m.groups[num] = 0;
    });
    team.serial([&](auto& warp) {
        const bool ok = decode_coded(warp, job, u, m, tables, begin, size, num_escapes, near, near_bytes);
        warp.step([&](int lane) {
            if (lane == 0) m.state->ok = ok;
        });
    });
    if (m.state->ok) join_unit<dtype>(team, job, u, m, nullptr, m.state->seeds);
}

}  // namespace bloombee::rans
