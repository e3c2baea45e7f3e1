// RMSNorm, the gate of an MLP and rotary embedding on the GPU: fused/rows.h. Device pointers, aligned to their elements; the
// result overlaps no input. Queued on `stream`; nothing is allocated and nothing waits. Returns the launch's error,
// cudaErrorInvalidValue for a shape or a type that there is not.
#pragma once

#include <cuda_runtime_api.h>

#include "fused/rows.h"

namespace bloombee::fused {

cudaError_t norm_cuda(const NormShape& shape, int dtype, const void* x, const void* weight, void* out, cudaStream_t stream);

cudaError_t gate_cuda(const GateShape& shape, int dtype, const void* gate, const void* up, void* out, cudaStream_t stream);

// Queries and keys in one launch; both have the same tokens and angles.
cudaError_t rotary_cuda(const RotaryShape& queries, const RotaryShape& keys, int dtype, const void* q, const void* k,
                        const void* cosines, const void* sines, void* q_out, void* k_out, cudaStream_t stream);

}  // namespace bloombee::fused
