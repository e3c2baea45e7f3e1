// Numbers and warps, on the device and on the host. As in codec/rans_unit.h, code is parametrised by a warp: `each(f)` calls
// f(lane) for every lane, values private to a lane are Warp::Lanes<T>. What lanes write to memory that they share is seen by
// all after `sync()`.
//
// `multiply` is the tensor cores' m16n8k16: for lane 4r + c, a holds (row r, k = 2c, 2c + 1), (row r + 8, the same k), (row r,
// k = 8 + 2c, 9 + 2c), (row r + 8, the same), b holds (k = 2c, 2c + 1; column r), (k = 8 + 2c, 9 + 2c; column r), and the result is
// a Four. In float32, which tensor cores round, lanes hand each other their values instead, in a fixed order.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/layout.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace bloombee::attention {

struct Bf16 {
    uint16_t bits;
};
struct Fp16 {
    uint16_t bits;
};

static BLOOMBEE_HD float minus_infinity() {
#if defined(__CUDA_ARCH__)
    return __int_as_float(static_cast<int>(0xff800000));
#else
    return -std::numeric_limits<float>::infinity();
#endif
}

static BLOOMBEE_HD float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
    return exp2f(x);
#else
    return std::exp2(x);
#endif
}

static BLOOMBEE_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
}

static BLOOMBEE_HD float larger(float a, float b) { return a > b ? a : b; }

static BLOOMBEE_HD uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    return std::bit_cast<uint32_t>(x);
#endif
}

static BLOOMBEE_HD float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    return std::bit_cast<float>(bits);
#endif
}

inline uint16_t host_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float host_half_value(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const float sign = h >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
    return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

inline uint16_t host_half(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float a = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (a >= 65520.0f) return sign | 0x7c00;
    if (a == 0.0f) return sign;
    int exponent = 0;
    std::frexp(a, &exponent);
    const int step = (exponent < -13 ? -13 : exponent) - 11;  // the last bit's power of two
    const int units = static_cast<int>(std::nearbyint(std::ldexp(a, -step)));
    return static_cast<uint16_t>(sign | (units + (step + 24) * 1024));
}

// Two values as one word of a 16-bit type, the first in its low half; or a value's own bits.
static BLOOMBEE_HD uint32_t pack(Bf16, float low, float high) {
#if defined(__CUDA_ARCH__)
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
#else
    return host_bf16(low) | static_cast<uint32_t>(host_bf16(high)) << 16;
#endif
}
static BLOOMBEE_HD uint32_t pack(Fp16, float low, float high) {
#if defined(__CUDA_ARCH__)
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
#else
    return host_half(low) | static_cast<uint32_t>(host_half(high)) << 16;
#endif
}

static BLOOMBEE_HD float value_of(Bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
static BLOOMBEE_HD float value_of(Fp16 x) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(x.bits));
#else
    return host_half_value(x.bits);
#endif
}
static BLOOMBEE_HD float value_of(float x) { return x; }

static BLOOMBEE_HD void put(Bf16* at, float x) { at->bits = static_cast<uint16_t>(pack(Bf16{}, x, 0.0f)); }
static BLOOMBEE_HD void put(Fp16* at, float x) { at->bits = static_cast<uint16_t>(pack(Fp16{}, x, 0.0f)); }
static BLOOMBEE_HD void put(float* at, float x) { *at = x; }

// 16 bytes that nothing writes meanwhile, at a multiple of 16.
static BLOOMBEE_HD Words load(const uint8_t* at) {
#if defined(__CUDA_ARCH__)
    const uint4 x = __ldg(reinterpret_cast<const uint4*>(at));
    return {{x.x, x.y, x.z, x.w}};
#else
    Words x;
    std::memcpy(&x, at, sizeof(x));
    return x;
#endif
}

// A lane's part of the operands of a product.
template <class T>
struct Left {
    uint32_t x[2 * sizeof(T)];
};
template <class T>
struct Right {
    uint32_t x[sizeof(T)];
};

struct HostWarp {
    template <class T>
    struct Lanes {
        T values[lanes];
        T& operator[](int lane) { return values[lane]; }
    };
    template <class F>
    void each(F f) {
        for (int lane = 0; lane < lanes; ++lane) f(lane);
    }
    void sync() {}
    // All four lanes of a quad get the largest, or the sum, of their values.
    void quad_max(Lanes<float>& x) { combine(x, larger); }
    void quad_sum(Lanes<float>& x) {
        combine(x, [](float a, float b) { return a + b; });
    }
    template <class T, class C>
    void multiply(T, Lanes<Left<T>>& a, Lanes<Right<T>>& b, C c) {
        for (int row = 0; row < band_pairs; ++row)
            for (int column = 0; column < 8; ++column) {
                float& sum = c(row % 8 * 4 + column / 2).x[row / 8 * 2 + column % 2];
                for (int quad = 0; quad < 4; ++quad)
                    for (int k = 0; k < 4; ++k)
                        sum = multiply_add(value<T>(a[row % 8 * 4 + quad].x, k / 2 * 4 + row / 8 * 2 + k % 2),
                                           value<T>(b[column * 4 + quad].x, k), sum);
            }
    }

  private:
    template <class F>
    static void combine(Lanes<float>& x, F f) {
        for (int step = 1; step < 4; step *= 2) {
            const Lanes<float> before = x;
            for (int lane = 0; lane < lanes; ++lane) x[lane] = f(before.values[lane], before.values[lane ^ step]);
        }
    }
    template <class T>
    static float value(const uint32_t* words, int index) {
        T x;
        std::memcpy(&x, reinterpret_cast<const uint8_t*>(words) + index * sizeof(T), sizeof(T));
        return value_of(x);
    }
};

#if defined(__CUDACC__)
struct DeviceWarp {
    int lane;
    template <class T>
    struct Lanes {
        T value;
        __device__ __forceinline__ T& operator[](int) { return value; }
    };
    template <class F>
    __device__ __forceinline__ void each(F f) {
        f(lane);
    }
    __device__ __forceinline__ void sync() { __syncwarp(); }
    __device__ __forceinline__ void quad_max(Lanes<float>& x) {
        x.value = larger(x.value, __shfl_xor_sync(~0u, x.value, 1));
        x.value = larger(x.value, __shfl_xor_sync(~0u, x.value, 2));
    }
    __device__ __forceinline__ void quad_sum(Lanes<float>& x) {
        x.value += __shfl_xor_sync(~0u, x.value, 1);
        x.value += __shfl_xor_sync(~0u, x.value, 2);
    }
    template <class C>
    __device__ __forceinline__ void multiply(Bf16, Lanes<Left<Bf16>>& a, Lanes<Right<Bf16>>& b, C c) {
        Four& d = c(lane);
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])
            : "r"(a.value.x[0]), "r"(a.value.x[1]), "r"(a.value.x[2]), "r"(a.value.x[3]), "r"(b.value.x[0]),
              "r"(b.value.x[1]));
    }
    template <class C>
    __device__ __forceinline__ void multiply(Fp16, Lanes<Left<Fp16>>& a, Lanes<Right<Fp16>>& b, C c) {
        Four& d = c(lane);
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])
            : "r"(a.value.x[0]), "r"(a.value.x[1]), "r"(a.value.x[2]), "r"(a.value.x[3]), "r"(b.value.x[0]),
              "r"(b.value.x[1]));
    }
    template <class C>
    __device__ __forceinline__ void multiply(float, Lanes<Left<float>>& a, Lanes<Right<float>>& b, C c) {
        Four& d = c(lane);
        const int column = lane % 4 * 2;
#pragma unroll 1
        for (int quad = 0; quad < 4; ++quad)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float low = take(a.value.x[k / 2 * 4 + k % 2], (lane & ~3) + quad);
                const float high = take(a.value.x[k / 2 * 4 + 2 + k % 2], (lane & ~3) + quad);
                const float even = take(b.value.x[k], column * 4 + quad);
                const float odd = take(b.value.x[k], column * 4 + 4 + quad);
                d.x[0] = multiply_add(low, even, d.x[0]);
                d.x[1] = multiply_add(low, odd, d.x[1]);
                d.x[2] = multiply_add(high, even, d.x[2]);
                d.x[3] = multiply_add(high, odd, d.x[3]);
            }
    }

  private:
    static __device__ __forceinline__ float take(uint32_t x, int from) {
        return __uint_as_float(__shfl_sync(~0u, x, from));
    }
};
#endif

}  // namespace bloombee::attention
