#include "codec/checksum.h"

#include <array>
#include <cstring>

#include "core/isa.h"

namespace bloombee {
namespace {

constexpr uint32_t polynomial = 0x82f63b78;  // 0x1edc6f41 with its bits reversed

// tables[k][b]: the register after byte b and k zero bytes.
constexpr auto tables = [] {
    std::array<std::array<uint32_t, 256>, 8> t{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? polynomial : 0);
        t[0][byte] = crc;
    }
    for (int k = 1; k < 8; ++k)
        for (int byte = 0; byte < 256; ++byte) t[k][byte] = (t[k - 1][byte] >> 8) ^ t[0][t[k - 1][byte] & 0xff];
    return t;
}();

uint32_t update(uint32_t crc, const uint8_t* data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        std::memcpy(&word, data, 8);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; ++k) crc ^= tables[7 - k][(word >> (8 * k)) & 0xff];
    }
    for (; size > 0; ++data, --size) crc = (crc >> 8) ^ tables[0][(crc ^ *data) & 0xff];
    return crc;
}

// a * b modulo the polynomial; bit 31 is the coefficient of x^0.
uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (a & bit) product ^= b;
        b = (b >> 1) ^ (b & 1 ? polynomial : 0);
    }
    return product;
}

#if BLOOMBEE_X86
// x^n modulo the polynomial, in the same order of bits.
uint32_t power_of_x(size_t n) {
    uint32_t power = 1u << 31, square = 1u << 30;
    for (; n != 0; n >>= 1) {
        if (n & 1) power = multiply(power, square);
        square = multiply(square, square);
    }
    return power;
}

// The products of the two halves of 16 bytes are reflected, which shifts them by a bit, and a register stands for 32
// zero bits more than it holds: hence the +-32 and the << 1 (Gopal et al. 2009, Intel 323102).
CrcFold make_fold(size_t distance_bytes) {
    return {uint64_t{power_of_x(8 * distance_bytes + 32)} << 1, uint64_t{power_of_x(8 * distance_bytes - 32)} << 1};
}

struct Folds {
    CrcFold of[3] = {make_fold(checksum_vbmi::block_bytes), make_fold(64), make_fold(16)};
    bool usable = __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512vbmi2");
};

struct Shifts {
    CrcShift by_long, by_short;
    Shifts() {
        make_crc_shift(checksum_sse42::long_stream, by_long);
        make_crc_shift(checksum_sse42::short_stream, by_short);
    }
};
#endif

}  // namespace

void make_crc_shift(size_t zeros, CrcShift& shift) {
    // A zero byte multiplies the register by x^8, so `zeros` of them by (x^8)^zeros: square and multiply.
    uint32_t power = 1u << 31, square = 1u << 23;
    for (size_t n = zeros; n != 0; n >>= 1) {
        if (n & 1) power = multiply(power, square);
        square = multiply(square, square);
    }
    for (int k = 0; k < 4; ++k)
        for (uint32_t byte = 0; byte < 256; ++byte) shift.table[k][byte] = multiply(power, byte << (8 * k));
}

uint32_t crc32c(const uint8_t* data, size_t size, uint32_t initial) {
#if BLOOMBEE_X86
    if (current_isa() != Isa::scalar) {
        static const Shifts shifts;
        static const Folds folds;
        uint32_t crc = ~initial;
        constexpr size_t block = checksum_vbmi::block_bytes;
        if (size >= 2 * block && folds.usable && current_isa() == Isa::avx512) {
            crc = checksum_vbmi::update(crc, data, size / block, folds.of);
            data += size / block * block, size %= block;
        }
        return ~checksum_sse42::update(crc, data, size, shifts.by_long, shifts.by_short);
    }
#endif
    return ~update(~initial, data, size);
}

}  // namespace bloombee
