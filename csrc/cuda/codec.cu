#include "cuda/codec.h"

#include "codec/rans_image.h"
#include "codec/rans_unit.h"

namespace bloombee {
namespace {

using namespace rans;

constexpr int warps_per_block = 4;
constexpr int threads = 32 * warps_per_block;
constexpr int blocks_per_sm = 7;  // what the tables in shared memory leave room for
constexpr uint64_t aggregate = uint64_t{1} << 62, prefix = uint64_t{2} << 62, amount = aggregate - 1;

struct DeviceWarp {
    int lane;
    template <class T>
    struct Lanes {
        T value;
        __device__ __forceinline__ T& operator[](int) { return value; }
    };
    template <class F>
    __device__ __forceinline__ void each(F f) {
        f(lane);
        __syncwarp();
    }
    __device__ __forceinline__ uint32_t ballot(Lanes<bool>& set) { return __ballot_sync(~0u, set.value); }
    __device__ __forceinline__ uint32_t sum(Lanes<uint32_t>& x) { return __reduce_add_sync(~0u, x.value); }
};

struct Workspace {
    CodecResult* result;
    uint64_t* status;     // [units] see find_place; decoding: offsets of the units
    uint32_t* directory;  // [units]
    uint8_t* scratch;     // [warps][unit_scratch_bytes]
    size_t zeroed, bytes;
};

constexpr size_t aligned(size_t n) { return (n + 255) / 256 * 256; }

Workspace layout_workspace(void* base, uint64_t num_units, uint64_t num_warps) {
    uint8_t* p = static_cast<uint8_t*>(base);
    Workspace w{};
    size_t at = 0;
    const auto take = [&](size_t bytes) {
        uint8_t* const here = p + at;
        at += aligned(bytes);
        return here;
    };
    w.result = reinterpret_cast<CodecResult*>(take(sizeof(CodecResult)));
    w.status = reinterpret_cast<uint64_t*>(take(num_units * sizeof(uint64_t)));
    w.zeroed = at;
    w.directory = reinterpret_cast<uint32_t*>(take(num_units * sizeof(uint32_t)));
    w.scratch = take(num_warps * unit_scratch_bytes);
    w.bytes = at;
    return w;
}

struct Task {
    Layout layout;  // as if all planes were there
    const TableImage* table;
    uint8_t* values;
    uint64_t stride;
    uint8_t* message;
    Workspace work;
    uint64_t limit;  // encoding: most bytes of the message
    uint64_t size;   // decoding: bytes of the message
    uint32_t single_escapes;
    int unit_log2;
    uint8_t key[4];
};

struct BlockMemory {
    SymbolTable tables[max_tables];
    Job job;
    uint32_t first_unit;  // decoding: not 0 if there is nothing to do
    WarpMemory warps[warps_per_block];
};

// Tables and job of a block; the tables go to shared memory.
__device__ void set_up(const Task& task, const Layout& layout, BlockMemory& m) {
    const uint32_t words = task.table->num_tables * sizeof(SymbolTable) / 4;
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(task.table->tables);
    for (uint32_t i = threadIdx.x; i < words; i += threads) reinterpret_cast<uint32_t*>(m.tables)[i] = from[i];
    if (threadIdx.x == 0) {
        m.job = {layout,      task.table->view(), static_cast<int>(task.table->row_base),
                 task.values, task.stride,        task.message};
        m.job.table.tables = m.tables;
    }
    __syncthreads();
}

// Layout of the message: fp32's low planes are there if any of their bits is set.
__device__ Layout final_layout(const Task& task) {
    const Layout& a = task.layout;
    if (a.dtype != code_fp32) return a;
    const uint32_t low = task.work.result->low_bits;
    return Layout::make(a.rows, a.channels, a.dtype, a.row_bits, a.lanes, task.unit_log2, low & 0xff, low & 0xff00);
}

__global__ void low_bits_kernel(Task task) {
    const uint64_t n = task.layout.num_values, channels = task.layout.channels;
    uint32_t bits = 0;
    for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += uint64_t{gridDim.x} * blockDim.x)
        bits |= *reinterpret_cast<const uint32_t*>(task.values + i / channels * task.stride + i % channels * 4);
    bits = __reduce_or_sync(~0u, bits) & 0xffff;
    if (threadIdx.x % 32 == 0 && bits) atomicOr(&task.work.result->low_bits, bits);
}

// Bytes of all units before `unit`, once they are known; tells those after it. Single-pass prefix sum with decoupled
// look-back (Merrill and Garland 2016): units are handed out in order, so every unit that is waited for is running.
__device__ uint64_t find_place(uint64_t* status, uint64_t unit, uint64_t size, int lane) {
    volatile uint64_t* const all = status;
    if (lane == 0) {
        __threadfence();
        all[unit] = (unit == 0 ? prefix : aggregate) | size;
    }
    uint64_t before = 0;
    for (int64_t last = static_cast<int64_t>(unit) - 1; last >= 0; last -= 32) {
        const int64_t mine = last - lane;
        uint64_t s = prefix;
        do {
            if (mine >= 0) s = all[mine];
        } while (__any_sync(~0u, s == 0));
        const uint32_t complete = __ballot_sync(~0u, s >= prefix);
        uint64_t part = complete == 0 || lane <= __ffs(static_cast<int>(complete)) - 1 ? s & amount : 0;
        for (int step = 16; step > 0; step /= 2) part += __shfl_xor_sync(~0u, part, step);
        before += part;
        if (complete) break;
    }
    if (lane == 0 && unit != 0) {
        __threadfence();
        all[unit] = prefix | (before + size);
    }
    return before;
}

template <int dtype>
__global__ void __launch_bounds__(threads) encode_kernel(Task task) {
    __shared__ BlockMemory m;
    const Layout layout = final_layout(task);
    set_up(task, layout, m);
    const int warp_index = threadIdx.x / 32;
    DeviceWarp warp{static_cast<int>(threadIdx.x % 32)};
    const uint64_t num_units = layout.num_units;
    const uint64_t trailer = num_units == 1 ? 0 : num_units * directory_entry_bytes;
    if (layout.units < min_coded_values || layout.units + trailer > task.limit) {  // as on the CPU
        task.work.result->raw = 1;
        return;
    }
    uint8_t* const scratch =
        task.work.scratch + (uint64_t{blockIdx.x} * warps_per_block + warp_index) * unit_scratch_bytes;
    for (;;) {
        if (threadIdx.x == 0) m.first_unit = atomicAdd(&task.work.result->ticket, warps_per_block);
        __syncthreads();
        const uint64_t index = uint64_t{m.first_unit} + warp_index;
        __syncthreads();
        if (index - warp_index >= num_units) return;
        if (index >= num_units) continue;
        const Unit u = layout.unit(index);
        const CodedUnit coded = encode_unit<dtype>(warp, m.job, u, m.warps[warp_index], scratch);
        const uint64_t at = layout.units + find_place(task.work.status, index, coded.size, warp.lane);
        const bool fits = at + coded.size + trailer <= task.limit && (num_units > 1 || coded.num_escapes <= 255);
        if (fits) place_unit<dtype>(warp, m.job, u, coded, m.warps[warp_index], task.message + at);
        if (warp.lane == 0) {
            task.work.directory[index] = coded.size | coded.num_escapes << 18;
            if (!fits) task.work.result->raw = 1;
            if (index + 1 == num_units) task.work.result->size = at + coded.size + trailer;
        }
    }
}

// Header and directory; or the raw message, if the coded one did not fit.
__global__ void finish_kernel(Task task) {
    const uint64_t first = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x, stride = uint64_t{gridDim.x} * blockDim.x;
    const Layout a = final_layout(task);
    uint8_t* const out = task.message;
    if (task.work.result->raw) {
        const uint64_t row_bytes = a.channels * element_size(a.dtype), bytes = a.rows * row_bytes;
        for (uint64_t i = first; i < bytes; i += stride)
            out[raw_header_bytes + i] = task.values[i / row_bytes * task.stride + i % row_bytes];
        if (first == 0) {
            out[0] = version << 4;
            out[1] = static_cast<uint8_t>(a.dtype);
            for (int i = 2; i < raw_header_bytes; ++i) out[i] = 0;
            task.work.result->size = raw_header_bytes + bytes;
        }
        return;
    }
    if (a.num_units > 1) {
        uint8_t* const directory = out + task.work.result->size - a.num_units * directory_entry_bytes;
        for (uint64_t i = first; i < 2 * a.num_units; i += stride)  // the message's end is only even
            reinterpret_cast<uint16_t*>(directory)[i] = reinterpret_cast<const uint16_t*>(task.work.directory)[i];
    }
    if (first != 0) return;
    out[0] = version << 4 | 1;
    out[1] = static_cast<uint8_t>(a.dtype | (a.lanes == 8 ? 0 : a.lanes == 16 ? 1 : 2) << 2);
    out[2] = static_cast<uint8_t>(task.unit_log2);
    if (a.dtype == code_fp32) out[2] |= static_cast<uint8_t>(!a.has_plane0 << 4 | !a.has_plane1 << 5);
    out[3] = a.num_units == 1 ? static_cast<uint8_t>(task.work.directory[0] >> 18) : 0;
    for (int i = 0; i < 4; ++i) out[4 + i] = 0, out[8 + i] = task.key[i];
    const uint64_t planes_end = a.units - 1;  // the padding byte, if there is one
    const uint64_t used = a.dtype == code_fp32 ? a.plane0 + (a.has_plane0 ? a.num_values : 0) : a.plane1;
    if (used == planes_end) out[planes_end] = 0;
}

// Offsets of the units from the sizes in the directory, by one block.
__global__ void __launch_bounds__(1024) offsets_kernel(Task task) {
    __shared__ uint64_t sums[1024];
    const uint64_t num_units = task.layout.num_units, units = task.layout.units;
    const uint64_t trailer = num_units == 1 ? 0 : num_units * directory_entry_bytes;
    const uint16_t* const directory = reinterpret_cast<const uint16_t*>(task.message + task.size - trailer);
    const auto entry = [&](uint64_t i) { return directory[2 * i] | static_cast<uint32_t>(directory[2 * i + 1]) << 16; };
    if (num_units == 1) {
        if (threadIdx.x == 0) {
            task.work.status[0] = units;
            task.work.directory[0] = static_cast<uint32_t>(task.size - units);
        }
        return;
    }
    const uint64_t share = (num_units + blockDim.x - 1) / blockDim.x, start = threadIdx.x * share;
    const uint64_t stop = start + share < num_units ? start + share : num_units;
    uint64_t mine = 0;
    for (uint64_t i = start; i < stop; ++i) mine += entry(i) & 0x3ffff;
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned step = 1; step < blockDim.x; step *= 2) {
        const uint64_t other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += other;
        __syncthreads();
    }
    uint64_t at = units + sums[threadIdx.x] - mine;
    for (uint64_t i = start; i < stop; ++i) {
        const uint32_t e = entry(i);
        task.work.status[i] = at;
        task.work.directory[i] = e;
        at += e & 0x3ffff;
    }
    if (threadIdx.x == 0 && units + sums[blockDim.x - 1] != task.size - trailer) task.work.result->error = 1;
}

template <int dtype>
__global__ void __launch_bounds__(threads) decode_kernel(Task task) {
    __shared__ BlockMemory m;
    // Not looked at again: a block may set it while others start.
    if (threadIdx.x == 0) m.first_unit = task.work.result->error;
    set_up(task, task.layout, m);
    if (m.first_unit != 0) return;  // the offsets lead outside
    const int warp_index = threadIdx.x / 32;
    DeviceWarp warp{static_cast<int>(threadIdx.x % 32)};
    const uint64_t num_units = task.layout.num_units, all_warps = uint64_t{gridDim.x} * warps_per_block;
    for (uint64_t index = uint64_t{blockIdx.x} * warps_per_block + warp_index; index < num_units; index += all_warps) {
        const uint8_t* const begin = task.message + task.work.status[index];
        const uint32_t entry = task.work.directory[index];
        const uint64_t size = num_units == 1 ? task.size - task.layout.units : entry & 0x3ffff;
        const uint32_t escapes = num_units == 1 ? task.single_escapes : entry >> 18;
        const bool even = task.work.status[index] % 2 == 0;  // what words need
        if (!even || !decode_unit<dtype>(warp, m.job, task.layout.unit(index), begin, begin + size, escapes,
                                         m.warps[warp_index]))
            task.work.result->error = 1;
        __syncwarp();
    }
}

cudaError_t num_blocks(uint64_t num_units, int* blocks) {
    int device = 0, sms = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    const uint64_t wanted = ceil_div(num_units, warps_per_block), most = static_cast<uint64_t>(sms) * blocks_per_sm;
    *blocks = static_cast<int>(wanted < most ? wanted : most);
    return error;
}

// False: no coded message has this shape.
bool make_layout(const CodecShape& s, bool plane0, bool plane1, Layout* layout) {
    const bool known =
        s.dtype >= code_bf16 && s.dtype <= code_fp32 && (s.row_bits == 0 || s.row_bits == 4 || s.row_bits == 8);
    if (!known || s.unit_log2 < 8 || s.unit_log2 > max_unit_log2) return false;
    if (s.channels == 0 || s.channels > (1u << 20) || s.rows > (uint64_t{1} << 40) / s.channels) return false;
    const uint64_t n = s.rows * s.channels;
    if (n < min_coded_values) return false;
    const bool fp32 = s.dtype == code_fp32;
    *layout = Layout::make(s.rows, s.channels, s.dtype, s.row_bits, lanes_for(n), s.unit_log2, fp32 && plane0,
                           fp32 && plane1);
    return layout->num_units < (uint64_t{1} << 31);  // the ticket counts in 32 bits
}

template <template <int> class Launch, class... Args>
void by_dtype(int dtype, Args... args) {
    if (dtype == code_bf16)
        Launch<code_bf16>::run(args...);
    else if (dtype == code_fp16)
        Launch<code_fp16>::run(args...);
    else
        Launch<code_fp32>::run(args...);
}

template <int dtype>
struct Encode {
    static void run(const Task& task, int blocks, cudaStream_t stream) {
        encode_kernel<dtype><<<blocks, threads, 0, stream>>>(task);
    }
};
template <int dtype>
struct Decode {
    static void run(const Task& task, int blocks, cudaStream_t stream) {
        decode_kernel<dtype><<<blocks, threads, 0, stream>>>(task);
    }
};

}  // namespace

cudaError_t codec_workspace_bytes(const CodecShape& shape, size_t* bytes) {
    Layout layout;
    int blocks = 0;
    if (!make_layout(shape, true, true, &layout)) return cudaErrorInvalidValue;
    const cudaError_t error = num_blocks(layout.num_units, &blocks);
    *bytes = layout_workspace(nullptr, layout.num_units, static_cast<uint64_t>(blocks) * warps_per_block).bytes;
    return error;
}

cudaError_t codec_encode_cuda(const CodecShape& shape, const void* values, const void* table, const uint8_t key[4],
                              uint8_t* message, void* workspace, cudaStream_t stream) {
    Task task{};
    int blocks = 0;
    if (!make_layout(shape, true, true, &task.layout)) return cudaErrorInvalidValue;
    if (const cudaError_t error = num_blocks(task.layout.num_units, &blocks)) return error;
    task.table = static_cast<const TableImage*>(table);
    task.values = const_cast<uint8_t*>(static_cast<const uint8_t*>(values));
    task.stride = shape.stride;
    task.message = message;
    task.work = layout_workspace(workspace, task.layout.num_units, static_cast<uint64_t>(blocks) * warps_per_block);
    task.limit = task.layout.num_values * element_size(shape.dtype) + raw_header_bytes;
    task.unit_log2 = shape.unit_log2;
    for (int i = 0; i < 4; ++i) task.key[i] = key[i];
    if (const cudaError_t error = cudaMemsetAsync(workspace, 0, task.work.zeroed, stream)) return error;
    if (shape.dtype == code_fp32)
        low_bits_kernel<<<static_cast<unsigned>(ceil_div(task.layout.num_values, 65536)), 256, 0, stream>>>(task);
    by_dtype<Encode>(shape.dtype, task, blocks, stream);
    const uint64_t finish = ceil_div(task.layout.num_values, 16384);
    finish_kernel<<<static_cast<unsigned>(finish < 1024 ? finish : 1024), 256, 0, stream>>>(task);
    return cudaGetLastError();
}

cudaError_t codec_decode_cuda(const CodecShape& shape, const uint8_t* head, const uint8_t* message, size_t size,
                              const void* table, void* values, void* workspace, cudaStream_t stream) {
    Task task{};
    int blocks = 0;
    const int missing = head[2] >> 4;
    CodecShape exact = shape;
    exact.unit_log2 = head[2] & 15;
    if (!make_layout(exact, !(missing & 1), !(missing & 2), &task.layout)) return cudaErrorInvalidValue;
    const uint64_t trailer = task.layout.num_units == 1 ? 0 : task.layout.num_units * directory_entry_bytes;
    if (task.layout.units < min_coded_values || size < task.layout.units + trailer || size % 2 != 0)
        return cudaErrorInvalidValue;
    if (const cudaError_t error = num_blocks(task.layout.num_units, &blocks)) return error;
    task.table = static_cast<const TableImage*>(table);
    task.values = static_cast<uint8_t*>(values);
    task.stride = shape.stride;
    task.message = const_cast<uint8_t*>(message);
    task.work = layout_workspace(workspace, task.layout.num_units, static_cast<uint64_t>(blocks) * warps_per_block);
    task.size = size;
    task.single_escapes = head[3];
    task.unit_log2 = exact.unit_log2;
    if (const cudaError_t error = cudaMemsetAsync(workspace, 0, sizeof(CodecResult), stream)) return error;
    offsets_kernel<<<1, 1024, 0, stream>>>(task);
    by_dtype<Decode>(shape.dtype, task, blocks, stream);
    return cudaGetLastError();
}

}  // namespace bloombee
