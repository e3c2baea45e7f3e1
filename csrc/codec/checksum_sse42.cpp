#include "codec/checksum.h"

#include <nmmintrin.h>
#include <string.h>

namespace bloombee::checksum_sse42 {
namespace {

inline uint64_t word_at(const uint8_t* p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

inline uint32_t shifted(uint32_t crc, const CrcShift& by) {
    return by.table[0][crc & 0xff] ^ by.table[1][crc >> 8 & 0xff] ^ by.table[2][crc >> 16 & 0xff] ^ by.table[3][crc >> 24];
}

// The instruction takes 3 cycles but a new one can start in each, so three streams of `stream` bytes run side by
// side. The register is linear: crc(A then B) = shifted(crc(A), |B|) ^ crc(B from 0).
inline uint32_t three_streams(uint32_t crc, const uint8_t* data, size_t stream, const CrcShift& by) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < stream; i += 8) {
        a = _mm_crc32_u64(a, word_at(data + i));
        b = _mm_crc32_u64(b, word_at(data + stream + i));
        c = _mm_crc32_u64(c, word_at(data + 2 * stream + i));
    }
    const uint32_t ab = shifted(static_cast<uint32_t>(a), by) ^ static_cast<uint32_t>(b);
    return shifted(ab, by) ^ static_cast<uint32_t>(c);
}

}  // namespace

uint32_t update(uint32_t crc, const uint8_t* data, size_t size, const CrcShift& by_long, const CrcShift& by_short) {
    for (; size >= 3 * long_stream; data += 3 * long_stream, size -= 3 * long_stream)
        crc = three_streams(crc, data, long_stream, by_long);
    for (; size >= 3 * short_stream; data += 3 * short_stream, size -= 3 * short_stream)
        crc = three_streams(crc, data, short_stream, by_short);
    uint64_t wide = crc;
    for (; size >= 8; data += 8, size -= 8) wide = _mm_crc32_u64(wide, word_at(data));
    crc = static_cast<uint32_t>(wide);
    for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, *data);
    return crc;
}

}  // namespace bloombee::checksum_sse42
