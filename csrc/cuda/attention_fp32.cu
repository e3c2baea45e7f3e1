#include "cuda/attention_kernels.h"

namespace bloombee::attention {

cudaError_t launch_fp32(const Task& task, cudaStream_t stream) { return launch<float>(task, stream); }

}  // namespace bloombee::attention
