#include "cuda/attention_kernels.h"

namespace bloombee::attention {

cudaError_t launch_bf16(const Task& task, cudaStream_t stream) { return launch<Bf16>(task, stream); }

}  // namespace bloombee::attention
