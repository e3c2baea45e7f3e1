#include "cuda/attention_kernels.h"

namespace bloombee::attention {

cudaError_t launch_fp16(const Task& task, cudaStream_t stream) { return launch<Fp16>(task, stream); }

}  // namespace bloombee::attention
