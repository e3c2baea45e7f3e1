// Attention over pages on the GPU: attention/tiles.h by blocks. Everything is queued on `stream`; nothing is allocated and nothing
// waits. What is launched follows from a task's bounds and never from what its tables hold, so a launch can be captured and replayed.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/layout.h"

namespace bloombee::attention {

// cudaErrorInvalidValue: no kernel is made for the task's dtype or widths.
cudaError_t attend_cuda(const Task& task, cudaStream_t stream);

cudaError_t write_cuda(const WriteTask& task, cudaStream_t stream);

}  // namespace bloombee::attention
