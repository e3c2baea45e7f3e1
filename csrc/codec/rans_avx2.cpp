// AVX2: 8 lanes a vector. Table look-ups are gathers; words move with byte shuffles.
#include <immintrin.h>

#include "codec/rans_loops.h"

namespace bloombee::rans {
namespace {

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// -- bf16 (the other dtypes go value by value) ---------------------------------------------------

inline __m256i packed(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8); }

uint64_t split_bf16(const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    const __m256i byte = _mm256_set1_epi16(0xff), mantissa = _mm256_set1_epi16(0x7f), sign = _mm256_set1_epi16(0x80);
    __m256i sum = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m256i a = load256(values + 2 * i), b = load256(values + 2 * i + 32);
        const __m256i e =
            packed(_mm256_and_si256(_mm256_srli_epi16(a, 7), byte), _mm256_and_si256(_mm256_srli_epi16(b, 7), byte));
        const auto seed = [&](__m256i v) {
            return _mm256_or_si256(_mm256_and_si256(v, mantissa), _mm256_and_si256(_mm256_srli_epi16(v, 8), sign));
        };
        store256(exponents + i, e);
        store256(seeds + i, packed(seed(a), seed(b)));
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(e, _mm256_setzero_si256()));
    }
    alignas(32) uint64_t sums[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), sum);
    return sums[0] + sums[1] + sums[2] + sums[3] + split(code_bf16, values + 2 * i, n - i, exponents + i, seeds + i);
}

uint64_t split_any(int dtype, const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    return dtype == code_bf16 ? split_bf16(values, n, exponents, seeds) : split(dtype, values, n, exponents, seeds);
}

void join_any(int dtype, const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values) {
    size_t i = 0;
    if (dtype == code_bf16) {
        const __m256i mantissa = _mm256_set1_epi16(0x7f), sign = _mm256_set1_epi16(static_cast<short>(0x8000));
        for (; i + 16 <= n; i += 16) {
            const __m256i e = _mm256_cvtepu8_epi16(load128(exponents + i)),
                          s = _mm256_cvtepu8_epi16(load128(seeds + i));
            const __m256i low = _mm256_or_si256(_mm256_slli_epi16(e, 7), _mm256_and_si256(s, mantissa));
            store256(values + 2 * i, _mm256_or_si256(low, _mm256_and_si256(_mm256_slli_epi16(s, 8), sign)));
        }
        exponents += i, seeds += i, values += 2 * i, n -= i;
    }
    join(dtype, exponents, seeds, n, values);
}

// -- exponents <-> symbols: the gather is scalar, the rest 32 bytes at a time --------------------

uint8_t* to_symbols_fast(const Row& row, const uint8_t* exponents, uint8_t* symbols, uint8_t* escapes) {
    const uint32_t whole = row.num_channels / group_values * group_values;
    alignas(32) uint8_t gathered[group_values];
    for (uint32_t at = 0; at < whole; at += group_values) {
        const SymbolTable& t = row.tables[row.table[at / group_values]];
        const uint8_t* tile = exponents + at / tile_channels * tile_channels;
        const uint8_t* source = exponents + at;
        if (row.ordered) {
            for (int i = 0; i < group_values; ++i) gathered[i] = tile[row.order[at + i]];
            source = gathered;
        }
        const __m256i base = _mm256_set1_epi8(static_cast<char>(row.base[at / group_values]));
        const __m256i last = _mm256_set1_epi8(static_cast<char>(t.window - 1)), zero = _mm256_setzero_si256();
        for (int half = 0; half < group_values; half += 32) {
            const __m256i e = load256(source + half);
            const __m256i index = _mm256_sub_epi8(e, _mm256_add_epi8(load256(row.shift + at + half), base));
            const __m256i inside = _mm256_cmpeq_epi8(_mm256_min_epu8(index, last), index);
            __m256i s = _mm256_and_si256(inside, _mm256_add_epi8(index, _mm256_set1_epi8(1)));
            if (t.has_zero) s = _mm256_blendv_epi8(s, _mm256_set1_epi8(zero_symbol), _mm256_cmpeq_epi8(e, zero));
            store256(symbols + at + half, s);
            for (uint32_t escaped = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(s, zero))); escaped;
                 escaped &= escaped - 1)
                *escapes++ = source[half + static_cast<int>(_tzcnt_u32(escaped))];
        }
    }
    if (whole == row.num_channels) return escapes;
    return to_symbols_from(row, whole, exponents, symbols, escapes);
}

const uint8_t* to_exponents_fast(const Row& row, const uint8_t* symbols, uint8_t* exponents, const uint8_t* escapes,
                                 const uint8_t* escapes_end) {
    const uint32_t whole = row.num_channels / group_values * group_values;
    alignas(32) uint8_t decoded[group_values];
    for (uint32_t at = 0; at < whole; at += group_values) {
        const __m256i base = _mm256_set1_epi8(static_cast<char>(row.base[at / group_values] - 1)),
                      zero = _mm256_setzero_si256();
        for (int half = 0; half < group_values; half += 32) {
            const __m256i s = load256(symbols + at + half);
            const __m256i e = _mm256_add_epi8(s, _mm256_add_epi8(load256(row.shift + at + half), base));
            store256(decoded + half, _mm256_andnot_si256(_mm256_cmpeq_epi8(s, _mm256_set1_epi8(zero_symbol)), e));
            for (uint32_t escaped = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(s, zero))); escaped;
                 escaped &= escaped - 1) {
                if (escapes == escapes_end) return nullptr;
                decoded[half + static_cast<int>(_tzcnt_u32(escaped))] = *escapes++;
            }
        }
        if (row.ordered) {
            uint8_t* const tile = exponents + at / tile_channels * tile_channels;
            for (int i = 0; i < group_values; ++i) tile[row.order[at + i]] = decoded[i];
        } else {
            store256(exponents + at, load256(decoded));
            store256(exponents + at + 32, load256(decoded + 32));
        }
    }
    if (whole == row.num_channels) return escapes;
    return to_exponents_from(row, whole, symbols, exponents, escapes, escapes_end);
}

// -- the coder -----------------------------------------------------------------------------------

// For each mask of 8 lanes: the byte shuffle that moves the words of its lanes together, and the one that spreads them.
struct Shuffles {
    alignas(16) uint8_t compress[256][16];
    alignas(16) uint8_t expand[256][16];
};

constexpr Shuffles make_shuffles() {
    Shuffles s{};
    for (int mask = 0; mask < 256; ++mask) {
        int next = 0;
        for (int i = 0; i < 16; ++i) s.compress[mask][i] = s.expand[mask][i] = 0x80;
        for (int lane = 0; lane < 8; ++lane) {
            if (!(mask >> lane & 1)) continue;
            for (int k = 0; k < 2; ++k) {
                s.compress[mask][2 * next + k] = static_cast<uint8_t>(2 * lane + k);
                s.expand[mask][2 * lane + k] = static_cast<uint8_t>(2 * next + k);
            }
            ++next;
        }
    }
    return s;
}

constexpr Shuffles shuffles = make_shuffles();

inline __m256i look_up(const uint32_t* table, __m256i index) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
}

inline int lane_mask(__m256i v) { return _mm256_movemask_ps(_mm256_castsi256_ps(v)); }

// A byte look-up in 32 entries, by an index below `size`.
inline __m256i look_up_bytes(const uint8_t* table, int size, __m256i index) {
    const __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), index);
    if (size <= 16) return low;
    const __m256i high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table + 16)), index);
    return _mm256_blendv_epi8(low, high, _mm256_slli_epi16(index, 3));  // bit 4 of a byte to its bit 7
}

// What a vector's symbols need: frequency, start, shift, reciprocal.
struct Entries {
    __m256i frequency, bias, shift, reciprocal;
};

// Gives off the words of the lanes that need to, then encodes a symbol in each lane; as encode_step.
inline __m256i encode8(__m256i x, const Entries& e, uint8_t*& words) {
    // States and limits are below 2^31, so the signed comparison is right.
    const __m256i keep = _mm256_cmpgt_epi32(_mm256_slli_epi32(e.frequency, 23), x);
    const int needs = 0xff & ~lane_mask(keep);
    const __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words), _mm_shuffle_epi8(halves, load128(shuffles.compress[needs])));
    words += 2 * _mm_popcnt_u32(static_cast<unsigned>(needs));
    x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, keep);
    const __m256i even = _mm256_mul_epu32(x, e.reciprocal);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(e.reciprocal, 32));
    const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    const __m256i rest = _mm256_sub_epi32(_mm256_set1_epi32(256), e.frequency);
    return _mm256_add_epi32(_mm256_add_epi32(x, e.bias), _mm256_mullo_epi32(_mm256_srlv_epi32(high, e.shift), rest));
}

// Few lanes: by gathers.
inline Entries gathered(const uint8_t* symbols, const SymbolTable& t) {
    const __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(symbols)));
    const __m256i entry = look_up(t.encode, s);
    return {_mm256_srli_epi32(entry, 23), _mm256_and_si256(entry, _mm256_set1_epi32(0x1ff)),
            _mm256_and_si256(_mm256_srli_epi32(entry, 9), _mm256_set1_epi32(7)), look_up(t.reciprocal, s)};
}

// Bytes of 32 lanes, in the order that unpacking takes them apart, as four vectors of lanes.
inline void spread(__m256i b0, __m256i b1, __m256i b2, __m256i b3, __m256i out[4]) {
    const __m256i low01 = _mm256_unpacklo_epi8(b0, b1), high01 = _mm256_unpackhi_epi8(b0, b1);
    const __m256i low23 = _mm256_unpacklo_epi8(b2, b3), high23 = _mm256_unpackhi_epi8(b2, b3);
    out[0] = _mm256_unpacklo_epi16(low01, low23);
    out[1] = _mm256_unpackhi_epi16(low01, low23);
    out[2] = _mm256_unpacklo_epi16(high01, high23);
    out[3] = _mm256_unpackhi_epi16(high01, high23);
}

// 32 lanes: by look-ups of bytes for all of them at once.
inline void looked_up(const uint8_t* symbols, const VectorTable& t, Entries e[4]) {
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7), byte = _mm256_set1_epi32(0xff);
    const __m256i last = _mm256_set1_epi8(static_cast<char>(t.num_ranks - 1));
    // The symbol of exponent 0 has the highest rank, all others their own number.
    const __m256i rank = _mm256_min_epu8(_mm256_permutevar8x32_epi32(load256(symbols), order), last);
    const auto of = [&](const uint8_t* table) { return look_up_bytes(table, t.num_ranks, rank); };
    const __m256i frequency = of(t.rank_frequency);
    const __m256i ones = _mm256_cmpeq_epi8(frequency, _mm256_set1_epi8(1));  // 255 more bias, see encode_step
    __m256i fields[4], reciprocals[4];
    spread(of(t.rank_start), frequency, of(t.rank_shift), ones, fields);
    spread(of(t.rank_reciprocal[0]), of(t.rank_reciprocal[1]), of(t.rank_reciprocal[2]), of(t.rank_reciprocal[3]),
           reciprocals);
    for (int v = 0; v < 4; ++v) {
        const __m256i start = _mm256_and_si256(fields[v], byte);
        e[v] = {_mm256_and_si256(_mm256_srli_epi32(fields[v], 8), byte),
                _mm256_add_epi32(start, _mm256_srli_epi32(fields[v], 24)),
                _mm256_and_si256(_mm256_srli_epi32(fields[v], 16), byte), reciprocals[v]};
    }
}

template <int vectors>
uint8_t* encode_blocks(const Blocks& blocks, const uint8_t* symbols, uint32_t* states, uint8_t* words) {
    __m256i x[vectors];
    for (int v = 0; v < vectors; ++v) x[v] = load256(states + 8 * v);
    for (size_t block = blocks.num_blocks; block-- > 0;)
        for (int step = group_values / (8 * vectors); step-- > 0;) {
            const uint8_t* const from = symbols + block * group_values + 8 * step * vectors;
            Entries e[4];
            if constexpr (vectors == 4) {
                looked_up(from, blocks.vectors[blocks.table[block]], e);
            } else {
                for (int v = 0; v < vectors; ++v) e[v] = gathered(from + 8 * v, blocks.tables[blocks.table[block]]);
            }
            for (int v = 0; v < vectors; ++v) x[v] = encode8(x[v], e[v], words);
        }
    for (int v = 0; v < vectors; ++v) store256(states + 8 * v, x[v]);
    return words;
}

uint8_t* encode_unit(const Blocks& blocks, const uint8_t* symbols, uint32_t* states, uint8_t* words) {
    if (blocks.lanes == 32) return encode_blocks<4>(blocks, symbols, states, words);
    if (blocks.lanes == 16) return encode_blocks<2>(blocks, symbols, states, words);
    return encode_blocks<1>(blocks, symbols, states, words);
}

inline __m256i decode8(__m256i x, const VectorTable& t, uint8_t* symbols, __m256i& needs) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i entry = look_up(t.wide_slot, _mm256_and_si256(x, byte));
    const __m256i top =
        _mm256_shuffle_epi8(entry, _mm256_setr_epi8(3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                                    3, 7, 11, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(symbols), both);
    const __m256i frequency = _mm256_and_si256(_mm256_srli_epi32(entry, 8), byte);
    x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, 8)), _mm256_and_si256(entry, byte));
    needs = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 15), _mm256_setzero_si256());
    return x;
}

// One symbol of each of 32 lanes without a gather: the rank of a slot is the number of starts it has reached, counted
// for all lanes at once in bytes. Frequencies and offsets come back to the lanes the way the slots went.
inline void decode32(__m256i x[4], const VectorTable& t, uint8_t* symbols, __m256i needs[4]) {
    const __m256i byte = _mm256_set1_epi32(0xff), zero = _mm256_setzero_si256(), flip = _mm256_set1_epi8(-128);
    const __m256i slot =
        _mm256_packus_epi16(_mm256_packus_epi32(_mm256_and_si256(x[0], byte), _mm256_and_si256(x[1], byte)),
                            _mm256_packus_epi32(_mm256_and_si256(x[2], byte), _mm256_and_si256(x[3], byte)));
    const __m256i signed_slot = _mm256_xor_si256(slot, flip);
    __m256i rank = zero;
    for (int r = 1; r < t.num_ranks; ++r) {
        const __m256i below = _mm256_set1_epi8(static_cast<char>((t.rank_start[r] - 1) ^ 0x80));
        rank = _mm256_sub_epi8(rank, _mm256_cmpgt_epi8(signed_slot, below));
    }
    const __m256i frequency = look_up_bytes(t.rank_frequency, t.num_ranks, rank);
    const __m256i offset = _mm256_sub_epi8(slot, look_up_bytes(t.rank_start, t.num_ranks, rank));
    __m256i symbol = rank;
    if (t.has_zero) {
        const __m256i last = _mm256_set1_epi8(static_cast<char>(t.num_ranks - 1));
        symbol = _mm256_blendv_epi8(rank, _mm256_set1_epi8(zero_symbol), _mm256_cmpeq_epi8(rank, last));
    }
    store256(symbols, _mm256_permutevar8x32_epi32(symbol, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    const __m256i low = _mm256_unpacklo_epi8(offset, frequency), high = _mm256_unpackhi_epi8(offset, frequency);
    const __m256i both[4] = {_mm256_unpacklo_epi16(low, zero), _mm256_unpackhi_epi16(low, zero),
                             _mm256_unpacklo_epi16(high, zero), _mm256_unpackhi_epi16(high, zero)};
    for (int v = 0; v < 4; ++v) {
        const __m256i product = _mm256_mullo_epi32(_mm256_srli_epi32(both[v], 8), _mm256_srli_epi32(x[v], 8));
        x[v] = _mm256_add_epi32(product, _mm256_and_si256(both[v], byte));
        needs[v] = _mm256_cmpeq_epi32(_mm256_srli_epi32(x[v], 15), zero);
    }
}

// Gives the lanes in `needs` their words; returns where the next ones end.
template <int vectors>
inline const uint8_t* refill(__m256i* x, const __m256i* needs, const uint8_t* end) {
    int masks[vectors], taken = 0;
    for (int v = 0; v < vectors; ++v) {
        masks[v] = lane_mask(needs[v]);
        taken += 2 * _mm_popcnt_u32(static_cast<unsigned>(masks[v]));
    }
    const uint8_t* word = end - taken;
    for (int v = 0; v < vectors; ++v) {
        const __m256i w = _mm256_cvtepu16_epi32(_mm_shuffle_epi8(load128(word), load128(shuffles.expand[masks[v]])));
        x[v] = _mm256_blendv_epi8(x[v], _mm256_or_si256(_mm256_slli_epi32(x[v], 16), w), needs[v]);
        word += 2 * _mm_popcnt_u32(static_cast<unsigned>(masks[v]));
    }
    return end - taken;
}

// Units of 8 * vectors lanes, step by step in turn.
template <int units, int vectors>
void decode_blocks(const Blocks* blocks, uint8_t* const* symbols, uint32_t* const* states, const uint8_t* const* begin,
                   const uint8_t** end) {
    __m256i x[units][vectors];
    for (int u = 0; u < units; ++u)
        for (int v = 0; v < vectors; ++v) x[u][v] = load256(states[u] + 8 * v);
    bool ok = true;
    for (size_t block = 0; ok && block < blocks[0].num_blocks; ++block) {
        for (int step = 0; step < group_values / (8 * vectors); ++step)
            for (int u = 0; u < units; ++u) {
                const VectorTable& t = blocks[u].vectors[blocks[u].table[block]];
                uint8_t* const to = symbols[u] + block * group_values + 8 * step * vectors;
                __m256i needs[vectors];
                if constexpr (vectors == 4) {
                    decode32(x[u], t, to, needs);
                } else {
                    for (int v = 0; v < vectors; ++v) x[u][v] = decode8(x[u][v], t, to + 8 * v, needs[v]);
                }
                end[u] = refill<vectors>(x[u], needs, end[u]);
            }
        // A block takes at most 64 words, and the caller has as much before `begin`: one test a block is enough.
        for (int u = 0; u < units; ++u) ok &= end[u] >= begin[u];
    }
    for (int u = 0; u < units; ++u) {
        if (!ok) end[u] = nullptr;
        for (int v = 0; v < vectors; ++v) store256(states[u] + 8 * v, x[u][v]);
    }
}

void encode(const Blocks* blocks, int num, const uint8_t* const* symbols, uint32_t* const* states, uint8_t** words) {
    for (int u = 0; u < num; ++u) words[u] = encode_unit(blocks[u], symbols[u], states[u], words[u]);
}

void decode(const Blocks* blocks, int num, uint8_t* const* symbols, uint32_t* const* states,
            const uint8_t* const* begin, const uint8_t** end) {
    const int lanes = blocks[0].lanes;
    if (lanes == 32 && num == 2) return decode_blocks<2, 4>(blocks, symbols, states, begin, end);
    for (int u = 0; u < num; ++u) {
        if (lanes == 32)
            decode_blocks<1, 4>(blocks + u, symbols + u, states + u, begin + u, end + u);
        else if (lanes == 16)
            decode_blocks<1, 2>(blocks + u, symbols + u, states + u, begin + u, end + u);
        else
            decode_blocks<1, 1>(blocks + u, symbols + u, states + u, begin + u, end + u);
    }
}

}  // namespace

const Ops avx2_ops = {"avx2",  split_any,       join_any,          split_bits, add_bits, split_low,
                      add_low, to_symbols_fast, to_exponents_fast, encode,     decode,   2};

}  // namespace bloombee::rans
