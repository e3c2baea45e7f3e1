#include "fused/lanes.h"

#include <vector>

namespace bloombee::fused {
namespace {

// As the threads of a block do it: by halves within each warp, then warp after warp.
float sum_of_shares(std::vector<float>& shares) {
    float total = 0;
    for (size_t warp = 0; warp < shares.size(); warp += warp_lanes) {
        float* const lanes = shares.data() + warp;
        for (int step = warp_lanes / 2; step > 0; step /= 2)
            for (int lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
        total = warp == 0 ? lanes[0] : total + lanes[0];
    }
    return total;
}

template <class N>
void norm_rows(const NormShape& s, const typename N::Stored* x, const typename N::Stored* weight, typename N::Stored* out) {
    std::vector<float> shares(static_cast<size_t>(norm_threads(s.width)));
    for (int64_t row = 0; row < s.rows; ++row) {
        const auto* const in = x + row_start(s, row);
        for (size_t thread = 0; thread < shares.size(); ++thread)
            shares[thread] =
                share_of_squares<N>(in, s.width, static_cast<int>(thread), static_cast<int>(shares.size()));
        const float scale = norm_scale(sum_of_shares(shares), s);
        for (int i = 0; i < s.width; ++i) out[row * s.width + i] = normed<N>(in[i], scale, weight[i], s.kind);
    }
}

template <class N>
void gate_rows(const GateShape& s, const typename N::Stored* gate, const typename N::Stored* up, typename N::Stored* out) {
    for (int64_t row = 0; row < s.rows; ++row)
        for (int i = 0; i < s.width; ++i)
            out[row * s.width + i] = gated<N>(gate[row * s.stride + i], up[row * s.stride + i], s.kind);
}

template <class N>
void rotary_rows(const RotaryShape& s, const typename N::Stored* x, const typename N::Stored* cosines,
                 const typename N::Stored* sines, typename N::Stored* out) {
    for (int64_t token = 0; token < s.tokens; ++token)
        for (int64_t head = 0; head < s.heads; ++head)
            for (int part = 0; part < rotary_parts(s); ++part)
                rotary_part<N>(s, x + token * s.token_stride + head * s.head_stride, cosines + token * s.angles,
                               sines + token * s.angles, out + (token * s.heads + head) * s.size, part);
}

template <class N>
const typename N::Stored* input(const void* p) {
    return static_cast<const typename N::Stored*>(p);
}

template <class N>
typename N::Stored* output(void* p) {
    return static_cast<typename N::Stored*>(p);
}

}  // namespace

bool norm_by_lanes(const NormShape& shape, int dtype, const void* x, const void* weight, void* out) {
    return with_number(dtype, [&]<class N>(N) { norm_rows<N>(shape, input<N>(x), input<N>(weight), output<N>(out)); });
}

bool gate_by_lanes(const GateShape& shape, int dtype, const void* gate, const void* up, void* out) {
    return with_number(dtype, [&]<class N>(N) { gate_rows<N>(shape, input<N>(gate), input<N>(up), output<N>(out)); });
}

bool rotary_by_lanes(const RotaryShape& shape, int dtype, const void* x, const void* cosines, const void* sines, void* out) {
    return with_number(dtype, [&]<class N>(N) {
        rotary_rows<N>(shape, input<N>(x), input<N>(cosines), input<N>(sines), output<N>(out));
    });
}

}  // namespace bloombee::fused
