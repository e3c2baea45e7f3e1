// Byte planes on the GPU: the same bytes as codec/planes_cpu.h. Device pointers of any alignment, not overlapping.
// The kernels are queued on `stream`; nothing is allocated and nothing waits. Returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace bloombee {

// data [n, element_bytes] -> planes [element_bytes, n]; element_bytes is 1, 2 or 4.
cudaError_t split_planes_cuda(const uint8_t* data, uint8_t* planes, size_t n, int element_bytes, cudaStream_t stream);

// planes [element_bytes, n] -> data [n, element_bytes].
cudaError_t join_planes_cuda(const uint8_t* planes, uint8_t* data, size_t n, int element_bytes, cudaStream_t stream);

}  // namespace bloombee
