#include "cuda/fused.h"

namespace bloombee::fused {
namespace {

constexpr int threads = 256;
constexpr int64_t max_blocks = 1 << 16;

int num_blocks(int64_t items, int64_t each) {
    const int64_t blocks = (items + each - 1) / each;
    return static_cast<int>(blocks < max_blocks ? blocks : max_blocks);
}

// The sum over the threads of a row, the same in each: by halves within each warp, then warp after warp.
template <int row_threads>
__device__ float sum_of_shares(float share, float* warps) {
    for (int step = warp_lanes / 2; step > 0; step /= 2) share += __shfl_xor_sync(~0u, share, step);
    if constexpr (row_threads == warp_lanes) return share;
    if (threadIdx.x % warp_lanes == 0) warps[threadIdx.x / warp_lanes] = share;
    __syncthreads();
    float total = warps[0];
    for (int warp = 1; warp < row_threads / warp_lanes; ++warp) total += warps[warp];
    __syncthreads();  // the next row writes there
    return total;
}

// blockDim = (row_threads, rows a block): one row where it takes more than a warp.
template <class N, int row_threads>
__global__ void __launch_bounds__(row_threads == warp_lanes ? threads : row_threads)
    norm_kernel(NormShape s, const typename N::Stored* x, const typename N::Stored* weight, typename N::Stored* out) {
    __shared__ float warps[row_threads / warp_lanes];
    const int thread = threadIdx.x;
    for (int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < s.rows; row += int64_t{gridDim.x} * blockDim.y) {
        const typename N::Stored* const in = x + row_start(s, row);
        const float share = share_of_squares<N>(in, s.width, thread, row_threads);
        const float scale = norm_scale(sum_of_shares<row_threads>(share, warps), s);
        for (int i = thread; i < s.width; i += row_threads) out[row * s.width + i] = normed<N>(in[i], scale, weight[i], s.kind);
    }
}

template <class N>
__global__ void __launch_bounds__(threads)
    gate_kernel(GateShape s, const typename N::Stored* gate, const typename N::Stored* up, typename N::Stored* out) {
    const int64_t stride = int64_t{gridDim.x} * blockDim.x, items = s.rows * s.width;
    for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < items; at += stride) {
        const int64_t from = at / s.width * s.stride + at % s.width;
        out[at] = gated<N>(gate[from], up[from], s.kind);
    }
}

template <class N>
__device__ void turn(const RotaryShape& s, int64_t at, const typename N::Stored* x, const typename N::Stored* cosines,
                     const typename N::Stored* sines, typename N::Stored* out) {
    const int parts = rotary_parts(s);
    const int part = static_cast<int>(at % parts);
    const int64_t head = at / parts % s.heads, token = at / parts / s.heads;
    rotary_part<N>(s, x + token * s.token_stride + head * s.head_stride, cosines + token * s.angles,
                   sines + token * s.angles, out + (token * s.heads + head) * s.size, part);
}

template <class N>
__global__ void __launch_bounds__(threads)
    rotary_kernel(RotaryShape queries, RotaryShape keys, const typename N::Stored* q, const typename N::Stored* k,
                  const typename N::Stored* cosines, const typename N::Stored* sines, typename N::Stored* q_out,
                  typename N::Stored* k_out) {
    const int64_t first = queries.tokens * queries.heads * rotary_parts(queries);
    const int64_t items = first + keys.tokens * keys.heads * rotary_parts(keys), stride = int64_t{gridDim.x} * blockDim.x;
    for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < items; at += stride) {
        if (at < first)
            turn<N>(queries, at, q, cosines, sines, q_out);
        else
            turn<N>(keys, at - first, k, cosines, sines, k_out);
    }
}

template <class N, int row_threads>
void launch_norm(const NormShape& s, const void* x, const void* weight, void* out, cudaStream_t stream) {
    using Stored = typename N::Stored;
    const unsigned rows = row_threads == warp_lanes ? threads / warp_lanes : 1;
    norm_kernel<N, row_threads><<<num_blocks(s.rows, rows), dim3(row_threads, rows), 0, stream>>>(
        s, static_cast<const Stored*>(x), static_cast<const Stored*>(weight), static_cast<Stored*>(out));
}

bool is_sound(const RotaryShape& s) {
    return s.tokens >= 0 && s.heads >= 0 && s.turned >= 0 && s.turned % 2 == 0 && s.turned <= s.size &&
           (s.angles == s.turned || 2 * s.angles == s.turned);
}

}  // namespace

cudaError_t norm_cuda(const NormShape& s, int dtype, const void* x, const void* weight, void* out, cudaStream_t stream) {
    if (s.rows < 0 || s.width < 1 || s.inner < 1 || s.kind < 0 || s.kind >= num_norms) return cudaErrorInvalidValue;
    if (s.rows == 0) return cudaSuccess;
    const bool known = with_number(dtype, [&]<class N>(N) {
        const int row_threads = norm_threads(s.width);
        if (row_threads == 32)
            launch_norm<N, 32>(s, x, weight, out, stream);
        else if (row_threads == 256)
            launch_norm<N, 256>(s, x, weight, out, stream);
        else
            launch_norm<N, 512>(s, x, weight, out, stream);
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}

cudaError_t gate_cuda(const GateShape& s, int dtype, const void* gate, const void* up, void* out, cudaStream_t stream) {
    if (s.rows < 0 || s.width < 1 || s.kind < 0 || s.kind >= num_gates) return cudaErrorInvalidValue;
    if (s.rows == 0) return cudaSuccess;
    const bool known = with_number(dtype, [&]<class N>(N) {
        using Stored = typename N::Stored;
        gate_kernel<N><<<num_blocks(s.rows * s.width, threads), threads, 0, stream>>>(
            s, static_cast<const Stored*>(gate), static_cast<const Stored*>(up), static_cast<Stored*>(out));
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}

cudaError_t rotary_cuda(const RotaryShape& queries, const RotaryShape& keys, int dtype, const void* q, const void* k,
                        const void* cosines, const void* sines, void* q_out, void* k_out, cudaStream_t stream) {
    if (!is_sound(queries) || !is_sound(keys)) return cudaErrorInvalidValue;
    const int64_t items =
        queries.tokens * queries.heads * rotary_parts(queries) + keys.tokens * keys.heads * rotary_parts(keys);
    if (items == 0) return cudaSuccess;
    const bool known = with_number(dtype, [&]<class N>(N) {
        using Stored = typename N::Stored;
        rotary_kernel<N><<<num_blocks(items, threads), threads, 0, stream>>>(
            queries, keys, static_cast<const Stored*>(q), static_cast<const Stored*>(k),
            static_cast<const Stored*>(cosines), static_cast<const Stored*>(sines), static_cast<Stored*>(q_out),
            static_cast<Stored*>(k_out));
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}

}  // namespace bloombee::fused
