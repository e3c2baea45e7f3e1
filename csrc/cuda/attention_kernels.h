// The kernels of one dtype; each has a file of its own, so that they are compiled side by side.
#pragma once

#include "attention/dispatch.h"
#include "attention/tiles.h"
#include "cuda/attention.h"

namespace bloombee::attention {

constexpr int narrow_threads = lanes * narrow_warps;
constexpr int wide_threads = lanes * wide_warps;

inline __device__ List list_of(const Task& task, int which) {
    const int2 x = __ldg(reinterpret_cast<const int2*>(task.tables) + 2 * task.group + which);
    return {x.x, x.y};
}

inline __device__ Item item_of(const Task& task, const List& list, int index) {
    const int4* const at = reinterpret_cast<const int4*>(task.tables + list.at) + 2 * index;
    const int4 a = __ldg(at), b = __ldg(at + 1);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

// One split of one band by the whole block.
template <class T, int dim>
__device__ void run_narrow(const Task& task, const NarrowBand& narrow, NarrowMemory<T>& memory) {
    DeviceWarp warp{static_cast<int>(threadIdx.x % lanes)};
    const int number = threadIdx.x / lanes;
    DeviceWarp::Lanes<Weights<T>> weights;
    narrow_weigh<T, dim>(warp, number, task, narrow, memory, weights);
    __syncthreads();
    const Stats stats = narrow_stats(memory, split_strips, warp.lane);
    for (int group = 0; group < Cut<T, dim>::groups && has_group<T>(task, group); ++group) {
        narrow_sum<T>(warp, number, task, narrow, group, memory, weights);
        __syncthreads();
        if (number < Width<T>::elements) narrow_add<T, dim>(task, narrow, group, number, memory, stats, warp.lane);
        __syncthreads();
    }
    if (narrow.num_splits == 1) return;
    __threadfence();  // what this thread has kept is there before its block is counted
    __syncthreads();
    if (threadIdx.x == 0) memory.arrived = atomicAdd(task.arrived + narrow.counter, 1);
    __syncthreads();
    if (memory.arrived + 1 != static_cast<uint32_t>(narrow.num_splits)) return;
    __threadfence();
    for (int i = threadIdx.x; narrow_finish<T, dim>(task, narrow, i);) i += narrow_threads;
    if (threadIdx.x == 0) task.arrived[narrow.counter] = 0;
}

template <class T, int dim>
__global__ void __launch_bounds__(narrow_threads, sizeof(T) == 2 || dim <= 64 ? 2 : 1) narrow_kernel(const Task task) {
    __shared__ NarrowMemory<T> memory;
    const List list = list_of(task, 0);
    const int each = task.kv_heads * task.bands[0];
    for (int work = blockIdx.x; work < list.count * each; work += gridDim.x) {
        const int index = work / each, head = work % each / task.bands[0], number = work % task.bands[0];
        const Item item = item_of(task, list, index);
        NarrowBand narrow;
        if (item.pages_at < 0) {
            if (number == 0) store_zeros<T>(task, item, head, threadIdx.x, narrow_threads);
        } else if (make_narrow(task, item, index, head, number, &narrow)) {
            run_narrow<T, dim>(task, narrow, memory);
        }
    }
}

template <class T, int dim>
__global__ void __launch_bounds__(wide_threads) wide_kernel(const Task task) {
    extern __shared__ Four kept[];  // [groups * elements][wide_threads]
    __shared__ int slots[wide_warps][strip_keys];
    const List list = list_of(task, 1);
    if (blockIdx.x >= static_cast<unsigned>(list.count)) return;
    DeviceWarp warp{static_cast<int>(threadIdx.x % lanes)};
    const int own = threadIdx.x / lanes, number = blockIdx.z * wide_warps + own;
    Band band;
    if (!make_band(task, item_of(task, list, blockIdx.x), blockIdx.y, number, &band)) return;
    wide_band<T, dim>(warp, task, band, slots[own],
                       [&](int, int i) -> Four& { return kept[i * wide_threads + threadIdx.x]; });
}

// Blocks of a kernel that the current device runs at once.
inline cudaError_t most_blocks(const void* kernel, int threads, int* blocks) {
    int device = 0, sms = 0, each = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0);
    *blocks = sms * each;
    return error;
}

inline cudaError_t launched(const void* kernel, dim3 grid, dim3 block, const Task& task, size_t memory, cudaStream_t stream) {
    void* arguments[] = {const_cast<Task*>(&task)};
    return cudaLaunchKernel(kernel, grid, block, arguments, memory, stream);
}

template <class T, int dim>
cudaError_t launch_narrow(const Task& task, cudaStream_t stream) {
    const void* const kernel = reinterpret_cast<const void*>(&narrow_kernel<T, dim>);
    const int64_t works = int64_t{task.bounds[0]} * task.kv_heads * task.bands[0];
    int most = 0;
    if (works == 0) return cudaSuccess;
    if (const cudaError_t error = most_blocks(kernel, narrow_threads, &most)) return error;
    return launched(kernel, static_cast<unsigned>(works < most ? works : most), narrow_threads, task, 0, stream);
}

template <class T, int dim>
cudaError_t launch_wide(const Task& task, cudaStream_t stream) {
    const void* const kernel = reinterpret_cast<const void*>(&wide_kernel<T, dim>);
    constexpr int memory = Cut<T, dim>::tiles * wide_threads * sizeof(Four);
    if (task.bounds[1] == 0) return cudaSuccess;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory))
        return error;
    const dim3 grid(task.bounds[1], task.kv_heads, (task.bands[1] + wide_warps - 1) / wide_warps);
    return launched(kernel, grid, wide_threads, task, memory, stream);
}

template <class T>
cudaError_t launch(const Task& task, cudaStream_t stream) {
    return by_width(task, [&]<int dim>() {
        const cudaError_t error = launch_narrow<T, dim>(task, stream);
        return error == cudaSuccess ? launch_wide<T, dim>(task, stream) : error;
    });
}

}  // namespace bloombee::attention
