// CRC-32C (Castagnoli: polynomial 0x1edc6f41, reflected, initial value and final xor all ones), as in RFC 3720
// appendix B.4. It finds every error burst up to 32 bits; it is no defence against an attacker.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bloombee {

// Checksum of `size` bytes. `initial` is the checksum of what came before them (0: nothing did), so that
// crc32c(b, crc32c(a)) == crc32c(a followed by b).
uint32_t crc32c(const uint8_t* data, size_t size, uint32_t initial);

// The register after `zeros` more zero bytes, as a table: shifted = t[0][r & 255] ^ t[1][r >> 8 & 255] ^ ...
struct CrcShift {
    uint32_t table[4][256];
};
void make_crc_shift(size_t zeros, CrcShift& shift);

namespace checksum_sse42 {

// Bytes of one of the three streams that run side by side; see `update`.
constexpr size_t long_stream = 4096;
constexpr size_t short_stream = 256;

// The register after `size` bytes, from `crc` (no initial or final xor).
uint32_t update(uint32_t crc, const uint8_t* data, size_t size, const CrcShift& by_long, const CrcShift& by_short);

}  // namespace checksum_sse42

// Factors that move 16 bytes on by a distance: for their lower and their upper half.
struct CrcFold {
    uint64_t low, high;
};

namespace checksum_vbmi {

constexpr size_t block_bytes = 256;

// The register after `blocks` >= 1 blocks, from `crc` (no initial or final xor). `folds` are for distances of 256, 64
// and 16 bytes.
uint32_t update(uint32_t crc, const uint8_t* data, size_t blocks, const CrcFold folds[3]);

}  // namespace checksum_vbmi

}  // namespace bloombee
