#include "cuda/attention.h"

#include "attention/dispatch.h"
#include "attention/strip.h"

namespace bloombee::attention {

cudaError_t launch_bf16(const Task& task, cudaStream_t stream);
cudaError_t launch_fp16(const Task& task, cudaStream_t stream);
cudaError_t launch_fp32(const Task& task, cudaStream_t stream);

namespace {

constexpr int write_threads = 256;

__global__ void __launch_bounds__(write_threads) write_kernel(const WriteTask task, int64_t parts) {
    const int64_t index = int64_t{blockIdx.x} * write_threads + threadIdx.x;
    if (index < parts) write_part(task, index);
}

}  // namespace

cudaError_t attend_cuda(const Task& task, cudaStream_t stream) {
    if (!is_covered(task)) return cudaErrorInvalidValue;
    return task.dtype == bfloat16  ? launch_bf16(task, stream)
           : task.dtype == float16 ? launch_fp16(task, stream)
                                   : launch_fp32(task, stream);
}

cudaError_t write_cuda(const WriteTask& task, cudaStream_t stream) {
    const int64_t parts = int64_t{task.rows} * task.kv_heads * ((task.key_bytes + task.value_bytes) / 16);
    if (parts == 0) return cudaSuccess;
    write_kernel<<<static_cast<unsigned>((parts + write_threads - 1) / write_threads), write_threads, 0, stream>>>(task, parts);
    return cudaGetLastError();
}

}  // namespace bloombee::attention
