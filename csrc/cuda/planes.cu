#include "codec/planes.h"
#include "cuda/planes.h"

namespace bloombee {
namespace {

constexpr int threads = 256;
constexpr size_t max_blocks = 8192;

size_t num_blocks(size_t items) {
    const size_t blocks = (items + threads - 1) / threads;
    return blocks < max_blocks ? blocks : max_blocks;
}

bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Four elements of element_bytes each, as they lie in memory: element i in bytes [i * element_bytes, ...).
template <int element_bytes>
struct alignas(4 * element_bytes) Four {
    uint32_t words[element_bytes];
};

template <int element_bytes>
__device__ uint32_t element_of(const Four<element_bytes>& four, int i) {
    if constexpr (element_bytes == 4) return four.words[i];
    return (four.words[i / 2] >> (16 * (i % 2))) & 0xffffu;
}

// The one-element path, for any alignment and size.
template <int element_bytes>
__global__ void split_each(const uint8_t* data, uint8_t* planes, size_t n) {
    const size_t stride = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride)
        split_element<element_bytes>(data, planes, n, i);
}

template <int element_bytes>
__global__ void join_each(const uint8_t* planes, uint8_t* data, size_t n) {
    const size_t stride = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride)
        join_element<element_bytes>(planes, data, n, i);
}

// Four elements a thread: one wide load, one word to each plane. Needs data aligned to 4 elements and every plane to
// 4 bytes (so n % 4 == 0).
template <int element_bytes>
__global__ void split_fours(const Four<element_bytes>* data, uint32_t* planes, size_t fours) {
    const size_t stride = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < fours; i += stride) {
        const Four<element_bytes> four = data[i];
#pragma unroll
        for (int k = 0; k < element_bytes; ++k) {
            uint32_t word = 0;
#pragma unroll
            for (int e = 0; e < 4; ++e) word = with_plane_byte(word, e, plane_byte(element_of(four, e), k));
            planes[k * fours + i] = word;
        }
    }
}

template <int element_bytes>
__global__ void join_fours(const uint32_t* planes, Four<element_bytes>* data, size_t fours) {
    const size_t stride = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < fours; i += stride) {
        uint32_t elements[4] = {};
#pragma unroll
        for (int k = 0; k < element_bytes; ++k) {
            const uint32_t word = planes[k * fours + i];
#pragma unroll
            for (int e = 0; e < 4; ++e) elements[e] = with_plane_byte(elements[e], k, plane_byte(word, e));
        }
        Four<element_bytes> four;
        if constexpr (element_bytes == 4) {
            for (int e = 0; e < 4; ++e) four.words[e] = elements[e];
        } else {
            four.words[0] = elements[0] | elements[1] << 16;
            four.words[1] = elements[2] | elements[3] << 16;
        }
        data[i] = four;
    }
}

template <int element_bytes>
void launch_split(const uint8_t* data, uint8_t* planes, size_t n, cudaStream_t stream) {
    using Wide = Four<element_bytes>;
    if (n % 4 == 0 && aligned(data, sizeof(Wide)) && aligned(planes, 4)) {
        split_fours<element_bytes><<<num_blocks(n / 4), threads, 0, stream>>>(
            reinterpret_cast<const Wide*>(data), reinterpret_cast<uint32_t*>(planes), n / 4);
    } else {
        split_each<element_bytes><<<num_blocks(n), threads, 0, stream>>>(data, planes, n);
    }
}

template <int element_bytes>
void launch_join(const uint8_t* planes, uint8_t* data, size_t n, cudaStream_t stream) {
    using Wide = Four<element_bytes>;
    if (n % 4 == 0 && aligned(data, sizeof(Wide)) && aligned(planes, 4)) {
        join_fours<element_bytes><<<num_blocks(n / 4), threads, 0, stream>>>(
            reinterpret_cast<const uint32_t*>(planes), reinterpret_cast<Wide*>(data), n / 4);
    } else {
        join_each<element_bytes><<<num_blocks(n), threads, 0, stream>>>(planes, data, n);
    }
}

}  // namespace

cudaError_t split_planes_cuda(const uint8_t* data, uint8_t* planes, size_t n, int element_bytes, cudaStream_t stream) {
    if (n == 0) return cudaSuccess;
    if (element_bytes == 1) return cudaMemcpyAsync(planes, data, n, cudaMemcpyDeviceToDevice, stream);
    if (element_bytes == 2) launch_split<2>(data, planes, n, stream);
    if (element_bytes == 4) launch_split<4>(data, planes, n, stream);
    return cudaGetLastError();
}

cudaError_t join_planes_cuda(const uint8_t* planes, uint8_t* data, size_t n, int element_bytes, cudaStream_t stream) {
    if (n == 0) return cudaSuccess;
    if (element_bytes == 1) return cudaMemcpyAsync(data, planes, n, cudaMemcpyDeviceToDevice, stream);
    if (element_bytes == 2) launch_join<2>(planes, data, n, stream);
    if (element_bytes == 4) launch_join<4>(planes, data, n, stream);
    return cudaGetLastError();
}

}  // namespace bloombee
