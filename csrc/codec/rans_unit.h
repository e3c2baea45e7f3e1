// One unit of a message by one warp: what the CUDA kernels run, written so that the host runs it too, lane by lane.
//
// The code is parametrised by a warp. `warp.each(f)` calls f(lane) for every lane: on the device each thread calls it
// once and the warp meets at the end, on the host it is a loop. Lane-private values are Warp::Lanes<T>: a register
// there, an array of 32 here. So between two `each` every lane sees what all lanes wrote, and nothing else is needed
// to make both agree. Outside `each` all variables have the same value in all lanes.
#pragma once

#include "codec/rans_layout.h"

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
    uint32_t ballot(Lanes<bool>& set) {
        uint32_t mask = 0;
        for (int lane = 0; lane < max_lanes; ++lane) mask |= static_cast<uint32_t>(set[lane]) << lane;
        return mask;
    }
    uint32_t sum(Lanes<uint32_t>& x) {
        uint32_t total = 0;
        for (int lane = 0; lane < max_lanes; ++lane) total += x[lane];
        return total;
    }
};

// Memory that a warp's lanes share.
struct WarpMemory {
    uint8_t exponents[tile_channels];  // of one tile of one row, channel order
    uint32_t states[max_lanes];
    uint8_t seeds[2 * max_lanes];
    uint8_t packed[max_lanes / 2 + (30 * max_lanes + 7) / 8 + 7];
};

// A message being made or read. Pointers are of the side that runs.
struct Job {
    Layout layout;
    TableView table;
    int row_base;
    uint8_t* values;
    uint64_t stride;  // bytes between rows of values
    uint8_t* message;
};

static BLOOMBEE_HD int set_bits(uint32_t mask) {
#if defined(__CUDA_ARCH__)
    return __popc(mask);
#else
    return std::popcount(mask);
#endif
}

static BLOOMBEE_HD uint32_t below(int lane) { return (1u << lane) - 1; }  // mask of the lanes before one

template <int dtype>
struct WordOf {
    using type = uint16_t;
};
template <>
struct WordOf<code_fp32> {
    using type = uint32_t;
};

// Values are aligned to their size; words of the coder lie on even addresses.
template <int dtype>
static BLOOMBEE_HD uint32_t value_at(const Job& job, uint64_t row, uint64_t channel) {
    using Word = typename WordOf<dtype>::type;
    return *reinterpret_cast<const Word*>(job.values + row * job.stride + channel * sizeof(Word));
}

// -- rows --------------------------------------------------------------------------------------

// Offset of a row from the mean of its exponents; all lanes get it.
template <int dtype, class Warp>
static BLOOMBEE_HD int measured_offset(Warp& warp, const Job& job, uint64_t row) {
    const Layout& a = job.layout;
    typename Warp::template Lanes<uint32_t> sums;
    warp.each([&](int lane) {
        sums[lane] = 0;
        for (uint64_t c = lane; c < a.channels; c += max_lanes)
            sums[lane] += exponent_bits<dtype>(value_at<dtype>(job, row, c));
    });
    const uint32_t d = static_cast<uint32_t>(a.channels), mean = (8 * warp.sum(sums) + d) / (2 * d);
    const int most = a.row_bits == 8 ? 127 : 7, offset = static_cast<int>(mean) - job.row_base;
    return offset < -most - 1 ? -most - 1 : offset > most ? most : offset;
}

static BLOOMBEE_HD int offset_at(const Job& job, uint64_t row) {
    const uint8_t* offsets = job.message + job.layout.row_offsets;
    if (job.layout.row_bits == 8) return offsets[row] - 128;
    if (job.layout.row_bits == 4) return (offsets[row / 2] >> (row % 2 * 4) & 15) - 8;
    return 0;
}

// Writes a row's offset. Two rows share a byte at 4 bits: the even one writes it, and measures its neighbour for that
// (which may belong to another unit) unless `next` is already known.
template <int dtype, class Warp>
static BLOOMBEE_HD void put_offset(Warp& warp, const Job& job, uint64_t row, int offset) {
    uint8_t* const offsets = job.message + job.layout.row_offsets;
    if (job.layout.row_bits == 8) {
        warp.each([&](int lane) {
            if (lane == 0) offsets[row] = static_cast<uint8_t>(offset + 128);
        });
    } else if (job.layout.row_bits == 4 && row % 2 == 0) {
        const int next = row + 1 < job.layout.rows ? measured_offset<dtype>(warp, job, row + 1) + 8 : 0;
        warp.each([&](int lane) {
            if (lane == 0) offsets[row / 2] = static_cast<uint8_t>((offset + 8) | next << 4);
        });
    }
}

// -- encoding ----------------------------------------------------------------------------------

// Splits channels [tile, tile + n) of a row of a unit: exponents to memory, the rest to the message.
template <int dtype, class Warp>
static BLOOMBEE_HD void split_tile(Warp& warp, const Job& job, const Unit& u, uint32_t row, uint32_t tile, uint32_t n,
                                   WarpMemory& m) {
    const Layout& a = job.layout;
    const uint64_t r = u.first_row + row;
    for (uint32_t start = 0; start < n; start += max_lanes) {
        typename Warp::template Lanes<uint32_t> value;
        warp.each([&](int lane) {
            const uint32_t c = start + lane, i = row * u.num_channels + tile + c;
            value[lane] = 0;
            if (c >= n) return;
            value[lane] = value_at<dtype>(job, r, u.first_channel + tile + c);
            m.exponents[c] = static_cast<uint8_t>(exponent_bits<dtype>(value[lane]));
            const uint8_t seed = static_cast<uint8_t>(seed_byte<dtype>(value[lane]));
            if (i < u.seeds)
                m.seeds[i] = seed;
            else
                job.message[u.seed_plane + (i - u.seeds)] = seed;
            if constexpr (dtype == code_fp32) {
                const uint64_t at = r * a.channels + u.first_channel + tile + c;
                if (a.has_plane1) job.message[a.plane1 + at] = static_cast<uint8_t>(value[lane] >> 8);
                if (a.has_plane0) job.message[a.plane0 + at] = static_cast<uint8_t>(value[lane]);
            }
        });
        if constexpr (dtype == code_fp16) {
            const uint64_t bytes = Layout::bitmap_bytes(a.channels), at = (u.first_channel + tile + start) / 8;
            const uint32_t piece = n - start < max_lanes ? (n - start + 7) / 8 : max_lanes / 8;
            for (int k = 0; k < 3; ++k) {
                typename Warp::template Lanes<bool> bit;
                warp.each([&](int lane) { bit[lane] = value[lane] >> fp16_bit(k) & 1; });
                const uint32_t map = warp.ballot(bit);
                warp.each([&](int lane) {
                    if (static_cast<uint32_t>(lane) < piece)
                        job.message[a.bitmaps + (3 * r + k) * bytes + at + lane] =
                            static_cast<uint8_t>(map >> (8 * lane));
                });
            }
        }
    }
}

// Where a unit's parts are before they have a place in the message.
struct CodedUnit {
    const uint8_t* words;
    uint32_t word_bytes;
    const uint8_t* escapes;
    uint32_t num_escapes;   // raw_unit: none of this counts
    uint32_t packed_bytes;  // of the states, in WarpMemory::packed
    uint32_t size;          // in the message
};

// Fills m.packed from m.states; returns how many bytes. One lane does it: some 1,000 of the 30,000 cycles of a unit.
template <class Warp>
static BLOOMBEE_HD uint32_t pack_states(Warp& warp, int lanes, WarpMemory& m) {
    uint32_t total = 0;
    for (int lane = 0; lane < lanes; ++lane) total += static_cast<uint32_t>(bit_length(m.states[lane])) - 1;
    warp.each([&](int first) {
        if (first != 0) return;
        uint8_t* p = m.packed;
        uint64_t pending = 0;
        int bits = 0;
        for (int lane = 0; lane < lanes; ++lane) {
            const int n = bit_length(m.states[lane]) - 1;
            pending |= static_cast<uint64_t>(m.states[lane] & ((1u << n) - 1)) << bits;
            for (bits += n; bits >= 8; bits -= 8, pending >>= 8) *p++ = static_cast<uint8_t>(pending);
        }
        if (bits > 0) *p++ = static_cast<uint8_t>(pending);
        for (int lane = 0; lane < lanes; lane += 2)
            *p++ = static_cast<uint8_t>((bit_length(m.states[lane]) - 16) | (bit_length(m.states[lane + 1]) - 16) << 4);
    });
    return (total + 7) / 8 + static_cast<uint32_t>(lanes) / 2;
}

constexpr size_t unit_scratch_bytes = 2 * (size_t{1} << max_unit_log2) + 4 * max_lanes;  // words up, escapes down

// Codes a unit: its planes and row offsets go to the message, the rest to `scratch` [unit_scratch_bytes].
template <int dtype, class Warp>
static BLOOMBEE_HD CodedUnit encode_unit(Warp& warp, const Job& job, const Unit& u, WarpMemory& m, uint8_t* scratch) {
    const Layout& a = job.layout;
    const TableView& t = job.table;
    typename Warp::template Lanes<uint32_t> state, symbol;
    typename Warp::template Lanes<bool> set;
    // Seeds first: the coder starts at the last row, and the seeds are in the first values.
    warp.each([&](int lane) {
        uint32_t seeds = 0;
        for (int k = 0; k < 2; ++k) {
            const uint32_t i = 2 * lane + k;
            if (lane < a.lanes && i < u.seeds)
                seeds |= seed_byte<dtype>(value_at<dtype>(job, u.first_row + i / u.num_channels,
                                                          u.first_channel + i % u.num_channels))
                         << (8 * k);
        }
        state[lane] = 1u << 16 | seeds;
    });
    uint8_t* words = scratch;
    uint8_t* escapes = scratch + unit_scratch_bytes;
    for (uint32_t row = u.num_rows; row-- > 0;) {
        const int offset = a.row_bits ? measured_offset<dtype>(warp, job, u.first_row + row) : 0;
        if (u.first_channel == 0) put_offset<dtype>(warp, job, u.first_row + row, offset);
        for (uint32_t g = u.groups(); g-- > 0;) {
            const uint32_t first = g * group_values, tile = first / tile_channels * tile_channels;
            const uint32_t in_tile = Layout::least(tile_channels, u.num_channels - tile);
            if (g + 1 == u.groups() || first + group_values == tile + tile_channels)
                split_tile<dtype>(warp, job, u, row, tile, in_tile, m);
            const Position at = position(t, u.first_channel / group_values + g, offset);
            const SymbolTable& s = t.tables[at.table];
            for (int step = group_values / a.lanes; step-- > 0;) {
                warp.each([&](int lane) {
                    const uint32_t j = first + step * a.lanes + lane, c = u.first_channel + j;
                    set[lane] = false;
                    if (lane >= a.lanes) return;
                    symbol[lane] = s.fill;
                    if (j < u.num_channels) {
                        symbol[lane] = symbol_of(m.exponents[t.order[c]], at.base + t.shift[c], s.window, s.has_zero);
                        set[lane] = symbol[lane] == escape_symbol;
                    }
                });
                if (const uint32_t escaped = warp.ballot(set)) {
                    escapes -= set_bits(escaped);
                    warp.each([&](int lane) {
                        if (escaped >> lane & 1)
                            escapes[set_bits(escaped & below(lane))] =
                                m.exponents[t.order[u.first_channel + first + step * a.lanes + lane]];
                    });
                }
                warp.each([&](int lane) {
                    set[lane] = lane < a.lanes && encode_needs_word(state[lane], s.encode[symbol[lane] & 31]);
                });
                const uint32_t needs = warp.ballot(set);
                warp.each([&](int lane) {
                    if (lane >= a.lanes) return;
                    if (needs >> lane & 1) {
                        reinterpret_cast<uint16_t*>(words)[set_bits(needs & below(lane))] =
                            static_cast<uint16_t>(state[lane]);
                        state[lane] >>= 16;
                    }
                    state[lane] = encode_step(state[lane], s.encode[symbol[lane]], s.reciprocal[symbol[lane]]);
                });
                words += 2 * set_bits(needs);
            }
        }
    }
    warp.each([&](int lane) { m.states[lane] = state[lane]; });
    CodedUnit coded{};
    coded.words = scratch;
    coded.word_bytes = static_cast<uint32_t>(words - scratch);
    coded.escapes = escapes;
    coded.num_escapes = static_cast<uint32_t>(scratch + unit_scratch_bytes - escapes);
    coded.packed_bytes = pack_states(warp, a.lanes, m);
    const uint32_t tail = coded.num_escapes + coded.packed_bytes, plain = u.seeds + u.values();
    coded.size = coded.word_bytes + tail + (tail & 1);
    if (coded.size >= plain + (plain & 1) || coded.num_escapes >= raw_unit) {
        coded.num_escapes = raw_unit;
        coded.size = plain + (plain & 1);
    }
    return coded;
}

template <class Warp>
static BLOOMBEE_HD void copy_bytes(Warp& warp, uint8_t* to, const uint8_t* from, uint32_t n) {
    warp.each([&](int lane) {
        for (uint32_t i = lane; i < n; i += max_lanes) to[i] = from[i];
    });
}

// Puts a coded unit into its place.
template <int dtype, class Warp>
static BLOOMBEE_HD void place_unit(Warp& warp, const Job& job, const Unit& u, const CodedUnit& coded,
                                   const WarpMemory& m, uint8_t* to) {
    if (coded.num_escapes == raw_unit) {
        warp.each([&](int lane) {
            for (uint32_t i = lane; i < u.values(); i += max_lanes) {
                const uint32_t value =
                    value_at<dtype>(job, u.first_row + i / u.num_channels, u.first_channel + i % u.num_channels);
                if (i < u.seeds) to[i] = static_cast<uint8_t>(seed_byte<dtype>(value));
                to[u.seeds + i] = static_cast<uint8_t>(exponent_bits<dtype>(value));
            }
            if (lane == 0 && (u.seeds + u.values()) % 2) to[coded.size - 1] = 0;
        });
        return;
    }
    warp.each([&](int lane) {
        for (uint32_t i = lane; i < coded.word_bytes / 2; i += max_lanes)
            reinterpret_cast<uint16_t*>(to)[i] = reinterpret_cast<const uint16_t*>(coded.words)[i];
    });
    uint8_t* const tail = to + (coded.size - coded.num_escapes - coded.packed_bytes);
    warp.each([&](int lane) {
        if (lane == 0 && tail > to + coded.word_bytes) to[coded.word_bytes] = 0;
    });
    copy_bytes(warp, tail, coded.escapes, coded.num_escapes);
    copy_bytes(warp, tail + coded.num_escapes, m.packed, coded.packed_bytes);
}

// -- decoding ----------------------------------------------------------------------------------

// Writes channels [tile, tile + n) of a row from their exponents and the message.
template <int dtype, class Warp>
static BLOOMBEE_HD void join_tile(Warp& warp, const Job& job, const Unit& u, uint32_t row, uint32_t tile, uint32_t n,
                                  const uint8_t* exponents) {
    using Word = typename WordOf<dtype>::type;
    const Layout& a = job.layout;
    const uint64_t r = u.first_row + row;
    warp.each([&](int lane) {
        for (uint32_t c = lane; c < n; c += max_lanes) {
            const uint32_t i = row * u.num_channels + tile + c;
            const uint64_t channel = u.first_channel + tile + c;
            const uint32_t seed = i < u.seeds ? 0 : job.message[u.seed_plane + (i - u.seeds)];
            uint32_t value = value_of<dtype>(exponents[c], seed);
            if constexpr (dtype == code_fp16) {
                const uint64_t bytes = Layout::bitmap_bytes(a.channels);
                for (int k = 0; k < 3; ++k)
                    value |= (job.message[a.bitmaps + (3 * r + k) * bytes + channel / 8] >> (channel % 8) & 1u)
                             << fp16_bit(k);
            }
            if constexpr (dtype == code_fp32) {
                const uint64_t at = r * a.channels + channel;
                if (a.has_plane1) value |= uint32_t{job.message[a.plane1 + at]} << 8;
                if (a.has_plane0) value |= job.message[a.plane0 + at];
            }
            reinterpret_cast<Word*>(job.values + r * job.stride)[channel] = static_cast<Word>(value);
        }
    });
}

// ORs the seed bytes, known last, into the unit's first values.
template <int dtype, class Warp>
static BLOOMBEE_HD void join_seeds(Warp& warp, const Job& job, const Unit& u, const uint8_t* seeds) {
    using Word = typename WordOf<dtype>::type;
    warp.each([&](int lane) {
        for (uint32_t i = lane; i < u.seeds; i += max_lanes) {
            Word* const row = reinterpret_cast<Word*>(job.values + (u.first_row + i / u.num_channels) * job.stride);
            row[u.first_channel + i % u.num_channels] |= static_cast<Word>(value_of<dtype>(0, seeds[i]));
        }
    });
}

// Reads the states from the end of a unit; returns where they start, nullptr if they do not fit.
template <class Warp>
static BLOOMBEE_HD const uint8_t* unpack_states(Warp& warp, const uint8_t* begin, const uint8_t* end, int lanes,
                                                typename Warp::template Lanes<uint32_t>& state) {
    if (end - begin < lanes / 2) return nullptr;
    const uint8_t* const lengths = end - lanes / 2;
    const auto length = [&](int lane) { return 15 + (lengths[lane / 2] >> (lane % 2 * 4) & 15); };
    int total = 0;
    for (int lane = 0; lane < lanes; ++lane) total += length(lane);
    if (lengths - begin < (total + 7) / 8) return nullptr;
    const uint8_t* const start = lengths - (total + 7) / 8;
    if (total % 8 && lengths[-1] >> (total % 8)) return nullptr;
    warp.each([&](int lane) {
        state[lane] = 0;
        if (lane >= lanes) return;
        int at = 0;
        for (int k = 0; k < lane; ++k) at += length(k);
        const int n = length(lane);
        uint64_t bits = 0;
        for (int k = at / 8; k <= (at + n - 1) / 8; ++k) bits |= uint64_t{start[k]} << (8 * (k - at / 8));
        state[lane] = 1u << n | (static_cast<uint32_t>(bits >> (at % 8)) & ((1u << n) - 1));
    });
    return start;
}

// Decodes the unit in [begin, end) into the values. False: it is corrupt, and the values are undefined.
template <int dtype, class Warp>
static BLOOMBEE_HD bool decode_unit(Warp& warp, const Job& job, const Unit& u, const uint8_t* begin, const uint8_t* end,
                                    uint32_t num_escapes, WarpMemory& m) {
    const Layout& a = job.layout;
    const TableView& t = job.table;
    if (num_escapes == raw_unit) {
        const uint32_t plain = u.seeds + u.values();
        if (end - begin != static_cast<int64_t>(plain + (plain & 1))) return false;
        for (uint32_t row = 0; row < u.num_rows; ++row)
            join_tile<dtype>(warp, job, u, row, 0, u.num_channels, begin + u.seeds + uint64_t{row} * u.num_channels);
        join_seeds<dtype>(warp, job, u, begin);
        return true;
    }
    typename Warp::template Lanes<uint32_t> state, symbol;
    typename Warp::template Lanes<bool> set;
    const uint8_t* const packed = unpack_states(warp, begin, end, a.lanes, state);
    if (!packed || packed - begin < static_cast<int64_t>(num_escapes)) return false;
    const uint8_t* escapes = packed - num_escapes;
    const uint8_t* words = escapes - ((escapes - begin) & 1);
    for (uint32_t row = 0; row < u.num_rows; ++row) {
        const int offset = offset_at(job, u.first_row + row);
        for (uint32_t g = 0; g < u.groups(); ++g) {
            const uint32_t first = g * group_values, tile = first / tile_channels * tile_channels;
            const Position at = position(t, u.first_channel / group_values + g, offset);
            const SymbolTable& s = t.tables[at.table];
            for (int step = 0; step < group_values / a.lanes; ++step) {
                warp.each([&](int lane) {
                    set[lane] = false;
                    if (lane >= a.lanes) return;
                    symbol[lane] = s.slot[state[lane] & 0xff];
                    state[lane] = decode_step(state[lane], s.range[symbol[lane]]);
                    set[lane] = state[lane] < state_low;
                });
                const uint32_t needs = warp.ballot(set);
                if (words - begin < 2 * set_bits(needs)) return false;
                words -= 2 * set_bits(needs);
                const uint32_t j0 = first + step * a.lanes;
                warp.each([&](int lane) {
                    if (needs >> lane & 1)
                        state[lane] =
                            state[lane] << 16 | reinterpret_cast<const uint16_t*>(words)[set_bits(needs & below(lane))];
                    set[lane] = lane < a.lanes && symbol[lane] == escape_symbol && j0 + lane < u.num_channels;
                });
                const uint32_t escaped = warp.ballot(set);
                if (packed - escapes < set_bits(escaped)) return false;
                warp.each([&](int lane) {
                    const uint32_t c = u.first_channel + j0 + lane;
                    if (lane >= a.lanes || j0 + lane >= u.num_channels) return;
                    const uint32_t exponent = escaped >> lane & 1 ? escapes[set_bits(escaped & below(lane))]
                                                                  : exponent_of(symbol[lane], at.base + t.shift[c]);
                    m.exponents[t.order[c]] = static_cast<uint8_t>(exponent);
                });
                escapes += set_bits(escaped);
            }
            if (g + 1 == u.groups() || first + group_values == tile + tile_channels)
                join_tile<dtype>(warp, job, u, row, tile, Layout::least(tile_channels, u.num_channels - tile),
                                 m.exponents);
        }
    }
    warp.each([&](int lane) {
        set[lane] = lane < a.lanes && state[lane] >> 16 != 1;
        for (int k = 0; k < 2 && lane < a.lanes; ++k) {
            m.seeds[2 * lane + k] = static_cast<uint8_t>(state[lane] >> (8 * k));
            set[lane] = set[lane] || (2 * lane + k >= static_cast<int>(u.seeds) && m.seeds[2 * lane + k] != 0);
        }
    });
    if (warp.ballot(set) != 0 || words != begin || escapes != packed) return false;
    join_seeds<dtype>(warp, job, u, m.seeds);
    return true;
}

}  // namespace bloombee::rans
