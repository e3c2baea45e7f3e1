// What lies between two products of a layer, row by row: RMSNorm, the gate of an MLP, rotary embedding. The CUDA kernels and their
// lanes on the host (lanes.cpp) are loops around the functions here.
//
// Values are rounded to their type wherever the modules of transformers write them to memory. A row's sum is taken in an order that
// depends on its width alone, so that its bits are the same in any batch.
#pragma once

#include <cmath>

#include "fused/numbers.h"

namespace bloombee::fused {

constexpr int warp_lanes = 32;
constexpr int chunk = 8;  // neighbours that one thread takes at a time

// -- RMSNorm -----------------------------------------------------------------------------------

// Where the weight comes in: after the row was rounded, before, or before and as 1 + weight.
enum { norm_rounded = 0, norm_wide = 1, norm_one_plus = 2, num_norms = 3 };

// Rows lie [outer][inner][width]; `outer_stride` and `inner_stride` in elements. The result is dense.
struct NormShape {
    int64_t rows, inner, outer_stride, inner_stride;
    int width, kind;
    float epsilon;
};

BLOOMBEE_HD int64_t row_start(const NormShape& s, int64_t row) {
    return row / s.inner * s.outer_stride + row % s.inner * s.inner_stride;
}

// Threads that share a row.
BLOOMBEE_HD int norm_threads(int width) { return width <= 256 ? 32 : width <= 2048 ? 256 : 512; }

// The squares that thread `thread` adds up.
template <class N>
BLOOMBEE_HD float share_of_squares(const typename N::Stored* row, int width, int thread, int threads) {
    float sum = 0;
    for (int first = thread * chunk; first < width; first += threads * chunk) {
        const int stop = first + chunk < width ? first + chunk : width;
        for (int i = first; i < stop; ++i) {
            const float x = N::load(row[i]);
            sum += x * x;
        }
    }
    return sum;
}

BLOOMBEE_HD float norm_scale(float squares, const NormShape& s) {
    return 1.0f / sqrtf(squares / static_cast<float>(s.width) + s.epsilon);
}

template <class N>
BLOOMBEE_HD typename N::Stored normed(typename N::Stored x, float scale, typename N::Stored weight, int kind) {
    const float y = N::load(x) * scale, w = N::load(weight);
    return N::store(kind == norm_rounded ? w * rounded<N>(y) : y * (kind == norm_wide ? w : 1.0f + w));
}

// -- the gate of an MLP ------------------------------------------------------------------------

enum { gate_silu = 0, gate_gelu_tanh = 1, gate_gelu = 2, num_gates = 3 };

// [rows, width]; both inputs' rows are `stride` elements apart. The result is dense.
struct GateShape {
    int64_t rows, stride;
    int width, kind;
};

BLOOMBEE_HD float activated(float x, int kind) {
    if (kind == gate_silu) return x / (1.0f + expf(-x));
    if (kind == gate_gelu) return x * 0.5f * (1.0f + erff(x * 0.70710678118654752440f));
    const float inner = 0.79788456080286535588f * (x + 0.044715f * (x * x * x));
    return 0.5f * x * (1.0f + tanhf(inner));
}

template <class N>
BLOOMBEE_HD typename N::Stored gated(typename N::Stored gate, typename N::Stored up, int kind) {
    return N::store(rounded<N>(activated(N::load(gate), kind)) * N::load(up));
}

// -- rotary embedding --------------------------------------------------------------------------

// Queries or keys [token][head][size], strides in elements. The first `turned` elements of a head are turned, element i with i +
// turned / 2; the others are copied. Cosines and sines are [tokens, angles], angles = turned or turned / 2. The result is dense.
struct RotaryShape {
    int64_t tokens, token_stride, head_stride;
    int heads, size, turned, angles;
};

// What one thread does of a head: a pair that is turned, or an element that is copied.
BLOOMBEE_HD int rotary_parts(const RotaryShape& s) { return s.size - s.turned / 2; }

template <class N>
BLOOMBEE_HD void rotary_part(const RotaryShape& s, const typename N::Stored* in, const typename N::Stored* cosines,
                             const typename N::Stored* sines, typename N::Stored* out, int part) {
    const int half = s.turned / 2;
    if (part >= half) {
        out[half + part] = in[half + part];
        return;
    }
    const int other = part + half, angle = other < s.angles ? other : part;
    const float a = N::load(in[part]), b = N::load(in[other]);
    out[part] = N::store(rounded<N>(a * N::load(cosines[part])) - rounded<N>(b * N::load(sines[part])));
    out[other] = N::store(rounded<N>(b * N::load(cosines[angle])) + rounded<N>(a * N::load(sines[angle])));
}

}  // namespace bloombee::fused
