// bf16, fp16 and fp32 in memory, fp32 in registers; the same on the host and on the device.
#pragma once

#include <bit>
#include <cstdint>

#include "codec/planes.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace bloombee::fused {

// Codes of the types, as Python says them.
enum { code_bf16 = 0, code_fp16 = 1, code_fp32 = 2 };

BLOOMBEE_HD uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    return std::bit_cast<uint32_t>(x);
#endif
}

BLOOMBEE_HD float float_of(uint32_t x) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(x);
#else
    return std::bit_cast<float>(x);
#endif
}

// Each type: what lies in memory, how it is read, and how a float is rounded to it (to nearest, ties to even).
struct Bf16 {
    using Stored = uint16_t;
    static BLOOMBEE_HD float load(Stored x) { return float_of(static_cast<uint32_t>(x) << 16); }
    static BLOOMBEE_HD Stored store(float x) {
        const uint32_t bits = bits_of(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // not a number
        return static_cast<Stored>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    }
};

struct Fp16 {
    using Stored = uint16_t;
#if defined(__CUDACC__)
    static BLOOMBEE_HD float load(Stored x) { return __half2float(__ushort_as_half(x)); }
    static BLOOMBEE_HD Stored store(float x) { return __half_as_ushort(__float2half_rn(x)); }
#else
    static float load(Stored x) {
        const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, rest = x & 0x7fffu;
        if (rest >= 0x7c00) return float_of(sign | 0x7f800000u | (rest & 0x3ff) << 13);
        const float subnormal = static_cast<float>(rest) * 0x1p-24f;
        return float_of(sign | (rest < 0x400 ? bits_of(subnormal) : (rest + (112 << 10)) << 13));
    }
    static Stored store(float x) {
        const uint32_t sign = bits_of(x) >> 16 & 0x8000, size = bits_of(x) & 0x7fffffffu;
        uint32_t rest = 0x7c00;
        if (size > 0x7f800000u)
            rest = 0x7e00;
        else if (size < 0x38800000u)  // below the least normal one: a float at 0.5 steps as they do
            rest = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
        else if (size < 0x477ff000u)
            rest = (size + 0xfffu + (size >> 13 & 1) - (112u << 23)) >> 13;
        return static_cast<Stored>(sign | rest);
    }
#endif
};

struct Fp32 {
    using Stored = float;
    static BLOOMBEE_HD float load(Stored x) { return x; }
    static BLOOMBEE_HD Stored store(float x) { return x; }
};

// As it is once it has been in memory.
template <class N>
BLOOMBEE_HD float rounded(float x) {
    return N::load(N::store(x));
}

// f(N{}) for the type of `code`; false if there is none.
template <class F>
bool with_number(int code, F f) {
    if (code == code_bf16) return f(Bf16{}), true;
    if (code == code_fp16) return f(Fp16{}), true;
    if (code == code_fp32) return f(Fp32{}), true;
    return false;
}

}  // namespace bloombee::fused
