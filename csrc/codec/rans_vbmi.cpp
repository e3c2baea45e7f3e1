// AVX-512 with VBMI and VBMI2 (Ice Lake, Zen 4 and later): all tables in registers, 16 lanes a vector.
#if !defined(__clang__)  // GCC 12 warns of its own headers (its bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>
#include <string.h>

#include "codec/rans_ops.h"

namespace bloombee::rans {
namespace {

inline __mmask64 first64(size_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

// -- values <-> exponents and planes -------------------------------------------------------------

// Bytes k, k + stride, k + 2 * stride ... of two vectors.
inline __m512i every_byte(int first, int stride) {
    alignas(64) uint8_t index[64];
    for (int i = 0; i < 64; ++i) index[i] = static_cast<uint8_t>(first + stride * i);
    return _mm512_load_si512(index);
}

template <int dtype>
uint64_t split16(const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    constexpr int shift = dtype == code_bf16 ? 7 : 10;
    const __m512i even = every_byte(0, 2), odd = every_byte(1, 2), mantissa = _mm512_set1_epi8(0x7f);
    const __m512i five_bits = _mm512_set1_epi8(0x1f), zero = _mm512_setzero_si512();
    __m512i sum = zero;
    for (size_t i = 0; i < n; i += 64) {
        const size_t left = n - i;
        __m512i a, b;
        if (left >= 64) {
            a = _mm512_loadu_si512(values + 2 * i);
            b = _mm512_loadu_si512(values + 2 * i + 64);
        } else {
            a = _mm512_maskz_loadu_epi8(first64(2 * left), values + 2 * i);
            b = left > 32 ? _mm512_maskz_loadu_epi8(first64(2 * left - 64), values + 2 * i + 64) : zero;
        }
        __m512i e = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, shift), even, _mm512_srli_epi16(b, shift));
        __m512i s = _mm512_permutex2var_epi8(a, even, b);
        if constexpr (dtype == code_bf16) {
            s = _mm512_ternarylogic_epi32(mantissa, s, _mm512_permutex2var_epi8(a, odd, b),
                                          0xca);  // mantissa ? s : sign
        } else {
            e = _mm512_and_si512(e, five_bits);
        }
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(e, zero));
        if (left >= 64) {
            _mm512_storeu_si512(exponents + i, e);
            _mm512_storeu_si512(seeds + i, s);
        } else {
            _mm512_mask_storeu_epi8(exponents + i, first64(left), e);
            _mm512_mask_storeu_epi8(seeds + i, first64(left), s);
        }
    }
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
}

uint64_t split32(const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    uint64_t total = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
        const __m512i v = _mm512_maskz_loadu_epi32(k, values + 4 * i);
        const __m512i e = _mm512_and_si512(_mm512_srli_epi32(v, 23), _mm512_set1_epi32(0xff));
        const __m512i s = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(v, 16), _mm512_set1_epi32(0x7f)),
                                          _mm512_and_si512(_mm512_srli_epi32(v, 24), _mm512_set1_epi32(0x80)));
        total += static_cast<uint32_t>(_mm512_reduce_add_epi32(e));
        _mm_mask_storeu_epi8(exponents + i, k, _mm512_cvtepi32_epi8(e));
        _mm_mask_storeu_epi8(seeds + i, k, _mm512_cvtepi32_epi8(s));
    }
    return total;
}

uint64_t split(int dtype, const uint8_t* values, size_t n, uint8_t* exponents, uint8_t* seeds) {
    if (dtype == code_bf16) return split16<code_bf16>(values, n, exponents, seeds);
    if (dtype == code_fp16) return split16<code_fp16>(values, n, exponents, seeds);
    return split32(values, n, exponents, seeds);
}

template <int dtype>
inline __m512i joined16(__m256i exponents, __m256i seeds) {
    const __m512i e = _mm512_cvtepu8_epi16(exponents), s = _mm512_cvtepu8_epi16(seeds);
    if constexpr (dtype == code_fp16)
        return _mm512_or_si512(_mm512_slli_epi16(_mm512_and_si512(e, _mm512_set1_epi16(0x1f)), 10), s);
    // The sign lands in bit 15, the mantissa's copy above it is masked off: 0x807f ? s * 0x101 : e << 7.
    const __m512i both = _mm512_or_si512(_mm512_slli_epi16(s, 8), s);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16(static_cast<short>(0x807f)), both, _mm512_slli_epi16(e, 7),
                                     0xca);
}

template <int dtype>
void join16(const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values) {
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(values + 2 * i,
                            joined16<dtype>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(exponents + i)),
                                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(seeds + i))));
    if (i < n) {
        const __mmask32 k = static_cast<__mmask32>((1ull << (n - i)) - 1);
        _mm512_mask_storeu_epi16(
            values + 2 * i, k,
            joined16<dtype>(_mm256_maskz_loadu_epi8(k, exponents + i), _mm256_maskz_loadu_epi8(k, seeds + i)));
    }
}

void join32(const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
        const __m512i e = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, exponents + i));
        const __m512i s = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, seeds + i));
        const __m512i v =
            _mm512_or_si512(_mm512_slli_epi32(e, 23),
                            _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(s, _mm512_set1_epi32(0x7f)), 16),
                                            _mm512_slli_epi32(_mm512_and_si512(s, _mm512_set1_epi32(0x80)), 24)));
        _mm512_mask_storeu_epi32(values + 4 * i, k, v);
    }
}

void join(int dtype, const uint8_t* exponents, const uint8_t* seeds, size_t n, uint8_t* values) {
    if (dtype == code_bf16) return join16<code_bf16>(exponents, seeds, n, values);
    if (dtype == code_fp16) return join16<code_fp16>(exponents, seeds, n, values);
    join32(exponents, seeds, n, values);
}

void split_bits(const uint8_t* values, size_t n, uint8_t* bitmaps) {
    const size_t bytes = (n + 7) / 8;
    for (size_t i = 0; i < n; i += 32) {
        const size_t left = n - i, size = left >= 32 ? 4 : (left + 7) / 8;
        const __mmask32 k = left >= 32 ? ~0u : (1u << left) - 1;
        const __m512i v = _mm512_maskz_loadu_epi16(k, values + 2 * i);
        for (int bit = 0; bit < 3; ++bit) {
            const uint32_t map = _mm512_test_epi16_mask(v, _mm512_set1_epi16(static_cast<short>(1 << fp16_bit(bit))));
            uint8_t* to = bitmaps + bit * bytes + i / 8;
            if (size == 4)
                memcpy(to, &map, 4);
            else
                memcpy(to, &map, size);
        }
    }
}

void add_bits(const uint8_t* bitmaps, size_t n, uint8_t* values) {
    const size_t bytes = (n + 7) / 8;
    for (size_t i = 0; i < n; i += 32) {
        const size_t left = n - i, size = left >= 32 ? 4 : (left + 7) / 8;
        const __mmask32 k = left >= 32 ? ~0u : (1u << left) - 1;
        __m512i v = _mm512_maskz_loadu_epi16(k, values + 2 * i);
        for (int bit = 0; bit < 3; ++bit) {
            uint32_t map = 0;
            const uint8_t* from = bitmaps + bit * bytes + i / 8;
            if (size == 4)
                memcpy(&map, from, 4);
            else
                memcpy(&map, from, size);
            v = _mm512_or_si512(v, _mm512_maskz_set1_epi16(map, static_cast<short>(1 << fp16_bit(bit))));
        }
        _mm512_mask_storeu_epi16(values + 2 * i, k, v);
    }
}

void split_low(const uint8_t* values, size_t n, uint8_t* plane1, uint8_t* plane0) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
        const __m512i v = _mm512_maskz_loadu_epi32(k, values + 4 * i);
        if (plane1) _mm_mask_storeu_epi8(plane1 + i, k, _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8)));
        if (plane0) _mm_mask_storeu_epi8(plane0 + i, k, _mm512_cvtepi32_epi8(v));
    }
}

void add_low(const uint8_t* plane1, const uint8_t* plane0, size_t n, uint8_t* values) {
    if (!plane1 && !plane0) return;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
        __m512i v = _mm512_maskz_loadu_epi32(k, values + 4 * i);
        if (plane1)
            v = _mm512_or_si512(v, _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, plane1 + i)), 8));
        if (plane0) v = _mm512_or_si512(v, _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(k, plane0 + i)));
        _mm512_mask_storeu_epi32(values + 4 * i, k, v);
    }
}

// -- exponents <-> symbols -----------------------------------------------------------------------

// Byte j of the result is byte index[j] of the 256 bytes in t.
inline __m512i look_up(const __m512i t[4], __m512i index) {
    const __m512i low = _mm512_permutex2var_epi8(t[0], index, t[1]), high = _mm512_permutex2var_epi8(t[2], index, t[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high);
}

inline void load256(const uint8_t* p, __m512i t[4]) {
    for (int k = 0; k < 4; ++k) t[k] = _mm512_loadu_si512(p + 64 * k);
}

uint8_t* to_symbols(const Row& row, const uint8_t* exponents, uint8_t* symbols, uint8_t* escapes) {
    const __m512i one = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    for (uint32_t tile = 0; tile < row.num_channels; tile += tile_channels) {
        __m512i all[4];
        load256(exponents + tile, all);  // may reach into exponent_room; what is there is not used
        for (int k = 0; k < 4 && tile + 64 * k < row.num_channels; ++k) {
            const uint32_t at = tile + 64 * k;
            const SymbolTable& t = row.tables[row.table[at / group_values]];
            const __m512i e = row.ordered ? look_up(all, _mm512_loadu_si512(row.order + at)) : all[k];
            const __m512i start = _mm512_add_epi8(_mm512_loadu_si512(row.shift + at),
                                                  _mm512_set1_epi8(static_cast<char>(row.base[at / group_values])));
            const __m512i index = _mm512_sub_epi8(e, start);
            const __mmask64 inside = _mm512_cmplt_epu8_mask(index, _mm512_set1_epi8(static_cast<char>(t.window)));
            __m512i s = _mm512_maskz_add_epi8(inside, index, one);
            // No branch: tables with and without a symbol for exponent 0 may alternate.
            const __mmask64 zeros = _mm512_mask_cmpeq_epi8_mask(0 - uint64_t{t.has_zero}, e, zero);
            s = _mm512_mask_mov_epi8(s, zeros, _mm512_set1_epi8(zero_symbol));
            if (__builtin_expect(row.num_channels - at < 64, 0))
                s = _mm512_mask_mov_epi8(_mm512_set1_epi8(static_cast<char>(t.fill)), first64(row.num_channels - at),
                                         s);
            _mm512_storeu_si512(symbols + at, s);
            // No branch either: whether a group has an escape is hard to predict.
            const __mmask64 escaped = _mm512_testn_epi8_mask(s, s);
            _mm512_storeu_si512(escapes, _mm512_maskz_compress_epi8(escaped, e));
            escapes += _mm_popcnt_u64(escaped);
        }
    }
    return escapes;
}

const uint8_t* to_exponents(const Row& row, const uint8_t* symbols, uint8_t* exponents, const uint8_t* escapes,
                            const uint8_t* escapes_end) {
    const __m512i zero_symbols = _mm512_set1_epi8(zero_symbol);
    for (uint32_t tile = 0; tile < row.num_channels; tile += tile_channels) {
        __m512i all[4] = {};
        int k = 0;
        for (; k < 4 && tile + 64 * k < row.num_channels; ++k) {
            const uint32_t at = tile + 64 * k;
            const __m512i s = _mm512_loadu_si512(symbols + at);
            const __m512i start = _mm512_add_epi8(_mm512_loadu_si512(row.shift + at),
                                                  _mm512_set1_epi8(static_cast<char>(row.base[at / group_values] - 1)));
            __m512i e = _mm512_maskz_add_epi8(_mm512_cmpneq_epi8_mask(s, zero_symbols), s, start);
            const __mmask64 escaped = _mm512_testn_epi8_mask(s, s) & first64(row.num_channels - at);
            if (__builtin_expect(escaped != 0, 0)) {
                if (escapes_end - escapes < __builtin_popcountll(escaped)) return nullptr;
                const int num = static_cast<int>(_mm_popcnt_u64(escaped));
                e = _mm512_mask_expand_epi8(e, escaped, _mm512_maskz_loadu_epi8(first64(num), escapes));
                escapes += num;
            }
            all[k] = e;
        }
        for (int j = 0; j < k; ++j)
            _mm512_storeu_si512(exponents + tile + 64 * j,
                                row.ordered ? look_up(all, _mm512_loadu_si512(row.inverse + tile + 64 * j)) : all[j]);
    }
    return escapes;
}

// -- the coder -----------------------------------------------------------------------------------

struct EncodeTable {
    __m512i entry[2], reciprocal[2];
    explicit EncodeTable(const SymbolTable& t) {
        for (int k = 0; k < 2; ++k) {
            entry[k] = _mm512_load_si512(t.encode + 16 * k);
            reciprocal[k] = _mm512_load_si512(t.reciprocal + 16 * k);
        }
    }
};

// A vector's symbols as the table gives them, and the lanes whose state must give off a word first.
struct Entries {
    __m512i entry, reciprocal;
    __mmask16 needs;
    Entries(__m512i x, const uint8_t* symbols, __mmask16 active, const EncodeTable& t) {
        const __m512i s = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols)));
        entry = _mm512_permutex2var_epi32(t.entry[0], s, t.entry[1]);
        reciprocal = _mm512_permutex2var_epi32(t.reciprocal[0], s, t.reciprocal[1]);
        const __m512i limit = _mm512_and_si512(entry, _mm512_set1_epi32(0x7f800000));
        needs = _mm512_mask_cmpge_epu32_mask(active, x, limit);
    }
};

inline uint8_t* store_words(uint8_t* words, const __m512i* x, const Entries* e, int vectors) {
    if (vectors == 2) {  // both at once: one compression, one store
        const __m512i low_halves = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30,
                                                    28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        const __mmask32 needs = _mm512_kunpackw(e[1].needs, e[0].needs);
        const __m512i all = _mm512_permutex2var_epi16(x[0], low_halves, x[1]);
        _mm512_storeu_si512(words, _mm512_maskz_compress_epi16(needs, all));
        return words + 2 * _mm_popcnt_u32(needs);
    }
    const __m256i all = _mm512_cvtepi32_epi16(x[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), _mm256_maskz_compress_epi16(e[0].needs, all));
    return words + 2 * _mm_popcnt_u32(e[0].needs);
}

// As encode_step, 16 lanes at a time.
inline __m512i encode16(__m512i x, const Entries& e) {
    x = _mm512_mask_srli_epi32(x, e.needs, x, 16);
    const __m512i even = _mm512_mul_epu32(x, e.reciprocal);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(e.reciprocal, 32));
    const __m512i high = _mm512_mask_shuffle_epi32(odd, 0x5555, even, static_cast<_MM_PERM_ENUM>(0xf5));
    const __m512i shift = _mm512_and_si512(_mm512_srli_epi32(e.entry, 9), _mm512_set1_epi32(7));
    const __m512i rest = _mm512_sub_epi32(_mm512_set1_epi32(256), _mm512_srli_epi32(e.entry, 23));
    return _mm512_add_epi32(_mm512_add_epi32(x, _mm512_and_si512(e.entry, _mm512_set1_epi32(0x1ff))),
                            _mm512_mullo_epi32(_mm512_srlv_epi32(high, shift), rest));
}

// `units` units of `vectors` vectors of 16 lanes each, of which `active` are in use (8 lanes: half a vector).
template <int units, int vectors, int lanes>
inline void encode_blocks(const Blocks* blocks, const uint8_t* const* symbols, uint32_t* const* states,
                          uint8_t** words) {
    constexpr __mmask16 active = lanes < 16 ? (1u << lanes) - 1 : 0xffff;
    __m512i x[units][vectors];
    uint8_t* w[units];
    for (int u = 0; u < units; ++u) {
        w[u] = words[u];
        for (int v = 0; v < vectors; ++v) x[u][v] = _mm512_maskz_loadu_epi32(active, states[u] + 16 * v);
    }
    for (size_t block = blocks[0].num_blocks; block-- > 0;)
        for (int u = 0; u < units; ++u) {
            const EncodeTable t(blocks[u].tables[blocks[u].table[block]]);
            for (int step = group_values / lanes; step-- > 0;) {
                const uint8_t* const at = symbols[u] + block * group_values + step * lanes;
                const Entries e[2] = {{x[u][0], at, active, t},
                                      {x[u][vectors - 1], at + 16 * (vectors - 1), active, t}};
                w[u] = store_words(w[u], x[u], e, vectors);
                for (int v = 0; v < vectors; ++v) x[u][v] = encode16(x[u][v], e[v]);
            }
        }
    for (int u = 0; u < units; ++u) {
        words[u] = w[u];
        for (int v = 0; v < vectors; ++v) _mm512_mask_storeu_epi32(states[u] + 16 * v, active, x[u][v]);
    }
}

void encode(const Blocks* blocks, int num, const uint8_t* const* symbols, uint32_t* const* states, uint8_t** words) {
    const int lanes = blocks[0].lanes;
    if (lanes == 32 && num == 4) return encode_blocks<4, 2, 32>(blocks, symbols, states, words);
    if (lanes == 32 && num == 2) return encode_blocks<2, 2, 32>(blocks, symbols, states, words);
    for (int u = 0; u < num; ++u) {
        if (lanes == 32)
            encode_blocks<1, 2, 32>(blocks + u, symbols + u, states + u, words + u);
        else if (lanes == 16)
            encode_blocks<1, 1, 16>(blocks + u, symbols + u, states + u, words + u);
        else
            encode_blocks<1, 1, 8>(blocks + u, symbols + u, states + u, words + u);
    }
}

struct DecodeTable {
    __m512i slot[4], range[2];
    explicit DecodeTable(const SymbolTable& t) {
        for (int k = 0; k < 4; ++k) slot[k] = _mm512_load_si512(t.slot + 64 * k);
        for (int k = 0; k < 2; ++k) range[k] = _mm512_load_si512(t.range + 16 * k);
    }
};

// One symbol a lane; gives the states before renormalisation and the lanes that need a word.
inline __m512i decode16(__m512i x, __mmask16 active, const DecodeTable& t, uint8_t* symbols, __mmask16& needs) {
    const __m512i low = _mm512_permutex2var_epi8(t.slot[0], x, t.slot[1]),
                  high = _mm512_permutex2var_epi8(t.slot[2], x, t.slot[3]);
    const __m512i s = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(x), high);  // byte 0 of each lane counts
    if (active == 0xffff)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols), _mm512_cvtepi32_epi8(s));
    else
        _mm_mask_storeu_epi8(symbols, active, _mm512_cvtepi32_epi8(s));
    const __m512i range = _mm512_permutex2var_epi32(t.range[0], s, t.range[1]);
    const __m512i inside = _mm512_and_si512(_mm512_sub_epi32(x, range), _mm512_set1_epi32(0xff));
    x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(range, 8), _mm512_srli_epi32(x, 8)), inside);
    needs = _mm512_mask_cmplt_epu32_mask(active, x, _mm512_set1_epi32(state_low));
    return x;
}

inline __m512i refill16(__m512i x, __mmask16 needs, __m256i words) {
    const __m512i w = _mm512_maskz_expand_epi32(needs, _mm512_cvtepu16_epi32(words));
    return _mm512_mask_or_epi32(x, needs, _mm512_slli_epi32(x, 16), w);
}

template <int units, int vectors, int lanes>
inline void decode_blocks(const Blocks* blocks, uint8_t* const* symbols, uint32_t* const* states,
                          const uint8_t* const* begin, const uint8_t** end) {
    constexpr __mmask16 active = lanes < 16 ? (1u << lanes) - 1 : 0xffff;
    __m512i x[units][vectors];
    const uint8_t* w[units];
    for (int u = 0; u < units; ++u) {
        w[u] = end[u];
        for (int v = 0; v < vectors; ++v) x[u][v] = _mm512_maskz_loadu_epi32(active, states[u] + 16 * v);
    }
    bool ok = true;
    for (size_t block = 0; ok && block < blocks[0].num_blocks; ++block) {
        // Steps of the units alternate, so that their dependency chains overlap.
        const SymbolTable* tables[units];
        for (int u = 0; u < units; ++u) tables[u] = &blocks[u].tables[blocks[u].table[block]];
        for (int step = 0; step < group_values / lanes; ++step)
            for (int u = 0; u < units; ++u) {
                const DecodeTable t(*tables[u]);
                __mmask16 needs[vectors];
                int taken[vectors + 1] = {};
                for (int v = 0; v < vectors; ++v) {
                    x[u][v] = decode16(x[u][v], active, t, symbols[u] + block * group_values + step * lanes + 16 * v,
                                       needs[v]);
                    taken[v + 1] = taken[v] + 2 * _mm_popcnt_u32(needs[v]);
                }
                w[u] -= taken[vectors];
                for (int v = 0; v < vectors; ++v) {
                    const __m256i* from = reinterpret_cast<const __m256i*>(w[u] + taken[v]);
                    x[u][v] = refill16(
                        x[u][v], needs[v],
                        lanes == 8 ? _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))
                                   : _mm256_loadu_si256(from));
                }
            }
        // A block takes at most 64 words, and the caller has as much before `begin`: one test a block is enough.
        for (int u = 0; u < units; ++u) ok &= w[u] >= begin[u];
    }
    for (int u = 0; u < units; ++u) {
        end[u] = ok ? w[u] : nullptr;
        for (int v = 0; v < vectors; ++v) _mm512_mask_storeu_epi32(states[u] + 16 * v, active, x[u][v]);
    }
}

void decode(const Blocks* blocks, int num, uint8_t* const* symbols, uint32_t* const* states,
            const uint8_t* const* begin, const uint8_t** end) {
    const int lanes = blocks[0].lanes;
    if (lanes == 32 && num == 4) return decode_blocks<4, 2, 32>(blocks, symbols, states, begin, end);
    if (lanes == 32 && num == 2) return decode_blocks<2, 2, 32>(blocks, symbols, states, begin, end);
    for (int u = 0; u < num; ++u) {
        if (lanes == 32)
            decode_blocks<1, 2, 32>(blocks + u, symbols + u, states + u, begin + u, end + u);
        else if (lanes == 16)
            decode_blocks<1, 1, 16>(blocks + u, symbols + u, states + u, begin + u, end + u);
        else
            decode_blocks<1, 1, 8>(blocks + u, symbols + u, states + u, begin + u, end + u);
    }
}

}  // namespace

const Ops vbmi_ops = {"avx512", split,      join,         split_bits, add_bits, split_low,
                      add_low,  to_symbols, to_exponents, encode,     decode,   4};

}  // namespace bloombee::rans
