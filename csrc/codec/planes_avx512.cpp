#include <immintrin.h>

#include "codec/planes_cpu.h"

namespace bloombee::planes_avx512 {
namespace {

inline __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store(uint8_t* p, __m512i v) { _mm512_storeu_si512(p, v); }

// In each 16-byte lane: 4 words of 4 bytes <-> [4 bytes 0 | 4 bytes 1 | 4 bytes 2 | 4 bytes 3]. Its own inverse.
inline __m512i zip_lane(__m512i v) {
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(v, bytes);
}

// A 4 x 4 grid of words, transposed. Its own inverse.
inline __m512i transpose_words(__m512i v) {
    const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(words, v);
}

// Rows of four 16-byte cells, a[0..3], transposed. Its own inverse.
inline void transpose(__m512i a[4]) {
    const __m512i l01 = _mm512_shuffle_i32x4(a[0], a[1], 0x44), h01 = _mm512_shuffle_i32x4(a[0], a[1], 0xee);
    const __m512i l23 = _mm512_shuffle_i32x4(a[2], a[3], 0x44), h23 = _mm512_shuffle_i32x4(a[2], a[3], 0xee);
    a[0] = _mm512_shuffle_i32x4(l01, l23, 0x88);
    a[1] = _mm512_shuffle_i32x4(l01, l23, 0xdd);
    a[2] = _mm512_shuffle_i32x4(h01, h23, 0x88);
    a[3] = _mm512_shuffle_i32x4(h01, h23, 0xdd);
}

}  // namespace

size_t split2(const uint8_t* data, uint8_t* planes, size_t n) {
    const __m512i low = _mm512_set1_epi16(0xff), order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i a = load(data + 2 * i), b = load(data + 2 * i + 64);
        const __m512i p0 = _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low));
        const __m512i p1 = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        store(planes + i, _mm512_permutexvar_epi64(order, p0));
        store(planes + n + i, _mm512_permutexvar_epi64(order, p1));
    }
    return i;
}

size_t join2(const uint8_t* planes, uint8_t* data, size_t n) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i p0 = _mm512_permutexvar_epi64(order, load(planes + i));
        const __m512i p1 = _mm512_permutexvar_epi64(order, load(planes + n + i));
        store(data + 2 * i, _mm512_unpacklo_epi8(p0, p1));
        store(data + 2 * i + 64, _mm512_unpackhi_epi8(p0, p1));
    }
    return i;
}

size_t split4(const uint8_t* data, uint8_t* planes, size_t n) {
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (int k = 0; k < 4; ++k) v[k] = transpose_words(zip_lane(load(data + 4 * i + 64 * k)));
        transpose(v);
        for (int k = 0; k < 4; ++k) store(planes + k * n + i, v[k]);
    }
    return i;
}

size_t join4(const uint8_t* planes, uint8_t* data, size_t n) {
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (int k = 0; k < 4; ++k) v[k] = load(planes + k * n + i);
        transpose(v);
        for (int k = 0; k < 4; ++k) store(data + 4 * i + 64 * k, zip_lane(transpose_words(v[k])));
    }
    return i;
}

}  // namespace bloombee::planes_avx512
