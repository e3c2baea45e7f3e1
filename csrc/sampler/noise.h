// The sampler's noise, defined bit for bit: one value per (request seed, absolute position, token id).
//
//   1. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
//          key     = (seed low word, seed high word)
//          counter = (token_id >> 1, 0, position low word, position high word)
//      gives four 32-bit words r0..r3. Two tokens share a call: bits = r0 | r1 << 32 for an even token id,
//      r2 | r3 << 32 for an odd one.
//   2. u = (bits >> 12) * 2^-52 + 2^-53: 52 bits and a half, so u is exact and strictly between 0 and 1. (With 53 bits
//      the half would round, and u could be 1.)
//   3. gumbel = -log(-log(u)), in [-3.61, 36.74], with the log below.
//
// All arithmetic is IEEE binary64, round to nearest, in the order written, nothing fused (-ffp-contract=off): the same
// bits on every machine. bloombee/engine/noise.py says the same in Python. Everything here is `static`: see core/isa.h.
#pragma once

#include <bit>
#include <cstdint>

namespace bloombee {

struct Noise {
    uint64_t seed;
    uint64_t position;
};

namespace philox {

constexpr uint32_t multiplier[2] = {0xd2511f53u, 0xcd9e8d57u};
constexpr uint32_t weyl[2] = {0x9e3779b9u, 0xbb67ae85u};
constexpr int rounds = 10;

struct Words {
    uint32_t w[4];
};

static inline Words philox4x32(Words c, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < rounds; ++round) {
        const uint64_t p0 = uint64_t{multiplier[0]} * c.w[0], p1 = uint64_t{multiplier[1]} * c.w[2];
        c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
              static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
        k0 += weyl[0];
        k1 += weyl[1];
    }
    return c;
}

}  // namespace philox

static inline uint64_t noise_bits(Noise noise, uint32_t token) {
    const philox::Words words = philox::philox4x32(
        {{token >> 1, 0, static_cast<uint32_t>(noise.position), static_cast<uint32_t>(noise.position >> 32)}},
        static_cast<uint32_t>(noise.seed), static_cast<uint32_t>(noise.seed >> 32));
    const uint32_t* pair = words.w + 2 * (token & 1);
    return pair[0] | uint64_t{pair[1]} << 32;
}

static inline double uniform_of(uint64_t bits) { return static_cast<double>(bits >> 12) * 0x1p-52 + 0x1p-53; }

// ln 2 = high + low; high has 33 bits, so that k * high is exact for |k| < 2^20.
constexpr double ln2_high = 0x1.62e42fefp-1, ln2_low = 0x1.473de6af278edp-34;

// Natural logarithm of a positive normal number, within 2 ulp. x = 2^k m with m in [sqrt(1/2), sqrt(2)), and
// log m = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1); |s| < 0.172, so 10 terms reach 2^-60.
static inline double exact_log(double x) {
    const uint64_t bits = std::bit_cast<uint64_t>(x);
    double k = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1022);
    double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3fe0000000000000u);
    if (m < 0x1.6a09e667f3bcdp-1) {
        m = m + m;
        k = k - 1.0;
    }
    const double f = m - 1.0;
    const double s = f / (f + 2.0);
    const double z = s * s;
    double p = 1.0 / 21;
    p = p * z + 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    const double t = s + s;
    return k * ln2_high + (t + (t * (z * p) + k * ln2_low));
}

static inline double gumbel_of(uint64_t bits) { return -exact_log(-exact_log(uniform_of(bits))); }

// Largest gumbel there is, rounded up.
constexpr double max_gumbel = 36.75;

}  // namespace bloombee
