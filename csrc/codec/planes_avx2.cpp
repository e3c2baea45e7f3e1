#include <immintrin.h>

#include "codec/planes_cpu.h"

namespace bloombee::planes_avx2 {
namespace {

inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(uint8_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

// 8 words of 4 bytes -> [8 bytes 0 | 8 bytes 1 | 8 bytes 2 | 8 bytes 3]; its own inverse is unzip8 below.
inline __m256i zip8(__m256i v) {
    const __m256i bytes = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                           0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i words = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(v, bytes), words);
}

inline __m256i unzip8(__m256i v) {
    const __m256i bytes = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                           0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i words = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(v, words), bytes);
}

// Rows of four 8-byte cells, a[0..3], transposed.
inline void transpose(__m256i a[4]) {
    const __m256i l01 = _mm256_unpacklo_epi64(a[0], a[1]), h01 = _mm256_unpackhi_epi64(a[0], a[1]);
    const __m256i l23 = _mm256_unpacklo_epi64(a[2], a[3]), h23 = _mm256_unpackhi_epi64(a[2], a[3]);
    a[0] = _mm256_permute2x128_si256(l01, l23, 0x20);
    a[1] = _mm256_permute2x128_si256(h01, h23, 0x20);
    a[2] = _mm256_permute2x128_si256(l01, l23, 0x31);
    a[3] = _mm256_permute2x128_si256(h01, h23, 0x31);
}

}  // namespace

size_t split2(const uint8_t* data, uint8_t* planes, size_t n) {
    const __m256i low = _mm256_set1_epi16(0xff);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m256i a = load(data + 2 * i), b = load(data + 2 * i + 32);
        const __m256i p0 = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        const __m256i p1 = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        store(planes + i, _mm256_permute4x64_epi64(p0, 0xd8));
        store(planes + n + i, _mm256_permute4x64_epi64(p1, 0xd8));
    }
    return i;
}

size_t join2(const uint8_t* planes, uint8_t* data, size_t n) {
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m256i p0 = _mm256_permute4x64_epi64(load(planes + i), 0xd8);
        const __m256i p1 = _mm256_permute4x64_epi64(load(planes + n + i), 0xd8);
        store(data + 2 * i, _mm256_unpacklo_epi8(p0, p1));
        store(data + 2 * i + 32, _mm256_unpackhi_epi8(p0, p1));
    }
    return i;
}

size_t split4(const uint8_t* data, uint8_t* planes, size_t n) {
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v[4];
        for (int k = 0; k < 4; ++k) v[k] = zip8(load(data + 4 * i + 32 * k));
        transpose(v);
        for (int k = 0; k < 4; ++k) store(planes + k * n + i, v[k]);
    }
    return i;
}

size_t join4(const uint8_t* planes, uint8_t* data, size_t n) {
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i v[4];
        for (int k = 0; k < 4; ++k) v[k] = load(planes + k * n + i);
        transpose(v);
        for (int k = 0; k < 4; ++k) store(data + 4 * i + 32 * k, unzip8(v[k]));
    }
    return i;
}

}  // namespace bloombee::planes_avx2
