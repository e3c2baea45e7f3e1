// CRC-32C by carry-less multiplication, four vectors of 64 bytes at a time.
#if !defined(__clang__)  // GCC 12 warns of its own headers (its bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include "codec/checksum.h"

namespace bloombee::checksum_vbmi {
namespace {

// Each 16-byte part of `x` moved on by the distance that `by` stands for, plus (xor) what is there.
inline __m512i folded(__m512i x, __m512i by, __m512i next) {
    const __m512i low = _mm512_clmulepi64_epi128(x, by, 0x00), high = _mm512_clmulepi64_epi128(x, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

inline __m512i constants(const CrcFold& fold) {
    return _mm512_broadcast_i64x2(_mm_set_epi64x(static_cast<long long>(fold.high), static_cast<long long>(fold.low)));
}

}  // namespace

uint32_t update(uint32_t crc, const uint8_t* data, size_t blocks, const CrcFold folds[3]) {
    __m512i x[4];
    for (int k = 0; k < 4; ++k) x[k] = _mm512_loadu_si512(data + 64 * k);
    x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
    const __m512i by_block = constants(folds[0]), by_vector = constants(folds[1]);
    for (size_t block = 1; block < blocks; ++block)
        for (int k = 0; k < 4; ++k)
            x[k] = folded(x[k], by_block, _mm512_loadu_si512(data + block_bytes * block + 64 * k));
    for (int k = 1; k < 4; ++k) x[k] = folded(x[k - 1], by_vector, x[k]);
    // Four parts of 16 bytes to one, which is as good as the whole: its checksum from 0 is the answer.
    alignas(64) long long parts[8];
    _mm512_store_si512(parts, x[3]);
    const __m128i by_part = _mm_set_epi64x(static_cast<long long>(folds[2].high), static_cast<long long>(folds[2].low));
    __m128i last = _mm_load_si128(reinterpret_cast<const __m128i*>(parts));
    for (int k = 1; k < 4; ++k) {
        const __m128i low = _mm_clmulepi64_si128(last, by_part, 0x00), high = _mm_clmulepi64_si128(last, by_part, 0x11);
        last = _mm_xor_si128(_mm_xor_si128(low, high), _mm_load_si128(reinterpret_cast<const __m128i*>(parts) + k));
    }
    const uint64_t first = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(last)));
    return static_cast<uint32_t>(_mm_crc32_u64(first, static_cast<uint64_t>(_mm_extract_epi64(last, 1))));
}

}  // namespace bloombee::checksum_vbmi
