#include "cuda/codec.h"

#include "codec/rans_image.h"
#include "codec/rans_unit.h"

namespace bloombee {
namespace {

using namespace rans;

constexpr int most_threads = 256;      // of a block
constexpr uint64_t few_units = 512;    // up to so many a block takes one unit at a time, else a warp
constexpr uint64_t aggregate = uint64_t{1} << 62, prefix = uint64_t{2} << 62, amount = aggregate - 1;

// -- teams: see rans_unit.h --------------------------------------------------------------------

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
    template <class F>
    __device__ __forceinline__ void step(F f) {
        f(lane);
    }
    __device__ __forceinline__ uint32_t ballot(Lanes<bool>& set) { return __ballot_sync(~0u, set.value); }
    __device__ __forceinline__ void put_bits(uint32_t* word, uint32_t bits) { atomicOr(word, bits); }
};

__device__ __forceinline__ void add_of_warp(uint32_t* sum, uint32_t x) {
    x = __reduce_add_sync(~0u, x);
    if (threadIdx.x % max_lanes == 0) atomicAdd(sum, x);
}

struct BlockTeam {
    static constexpr int size = most_threads;
    static constexpr bool is_block = true;
    __device__ __forceinline__ static int rank() { return static_cast<int>(threadIdx.x); }
    __device__ __forceinline__ static uint32_t index() { return 0; }  // in its block
    __device__ __forceinline__ static uint32_t num() { return 1; }    // of such teams
    template <class F>
    __device__ __forceinline__ void each(F f) {
        f(rank());
        __syncthreads();
    }
    template <class F>
    __device__ __forceinline__ void serial(F f) {
        if (rank() < max_lanes) {
            DeviceWarp warp{rank()};
            f(warp);
        }
        __syncthreads();
    }
    __device__ __forceinline__ void add(uint32_t* sum, uint32_t x) { add_of_warp(sum, x); }
};

struct WarpTeam {
    static constexpr int size = max_lanes;
    static constexpr bool is_block = false;
    __device__ __forceinline__ static int rank() { return static_cast<int>(threadIdx.x % max_lanes); }
    __device__ __forceinline__ static uint32_t index() { return threadIdx.x / max_lanes; }
    __device__ __forceinline__ static uint32_t num() { return blockDim.x / max_lanes; }
    template <class F>
    __device__ __forceinline__ void each(F f) {
        f(rank());
        __syncwarp();
    }
    template <class F>
    __device__ __forceinline__ void serial(F f) {
        DeviceWarp warp{rank()};
        f(warp);
        __syncwarp();
    }
    __device__ __forceinline__ void add(uint32_t* sum, uint32_t x) { add_of_warp(sum, x); }
};

// -- what a run needs --------------------------------------------------------------------------

// All 0 between runs.
struct Counters {
    uint64_t size;    // encoding: of the message, once it is known
    uint32_t ticket;  // the next unit to be encoded
    uint32_t raw, low_bits, error;
    uint32_t done;  // blocks
};

struct UnitRecord {
    uint64_t status;  // encoding, see find_place; 0 between runs
    uint64_t offset;  // decoding: of the unit in the message
    uint32_t entry;   // of the directory
};

struct Workspace {
    CodecResult* result;
    Counters* counters;
    UnitRecord* units;
    size_t bytes;
};

constexpr size_t aligned(size_t n) { return (n + 255) / 256 * 256; }

Workspace layout_workspace(void* base, uint64_t num_units) {
    uint8_t* const p = static_cast<uint8_t*>(base);
    const size_t counters = aligned(sizeof(CodecResult)), units = counters + aligned(sizeof(Counters));
    return {reinterpret_cast<CodecResult*>(p), reinterpret_cast<Counters*>(p + counters),
            reinterpret_cast<UnitRecord*>(p + units), aligned(units + num_units * sizeof(UnitRecord))};
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

    __device__ uint64_t trailer() const { return layout.num_units == 1 ? 0 : layout.num_units * directory_entry_bytes; }
};

constexpr uint32_t encode_tables_bytes = (max_tables * num_symbols + max_tables / 2) * sizeof(EncodeEntry);
constexpr uint32_t decode_tables_bytes = max_tables * 256 * sizeof(uint32_t);

extern __shared__ Bytes16 shared_memory[];

__device__ void copy_table(uint32_t words, const uint32_t* from, uint32_t* to) {
    for (uint32_t i = threadIdx.x; i < words / 4; i += blockDim.x)
        reinterpret_cast<Bytes16*>(to)[i] = reinterpret_cast<const Bytes16*>(from)[i];
}

// The job of a block in its memory, for all of its threads after the next barrier.
__device__ void set_job(const Task& task, const Layout& layout, Job& job) {
    if (threadIdx.x == 0)
        job = {layout,      UnitTables::of(*task.table), static_cast<int>(task.table->row_base),
               task.values, task.stride,                 task.message};
}

template <class Team>
__device__ UnitMemory memory_of_team(uint32_t after, int unit_log2, bool encoding) {
    uint8_t* const first = reinterpret_cast<uint8_t*>(shared_memory) + after;
    return UnitMemory::at(first + Team::index() * UnitMemory::num_bytes(unit_log2, encoding), unit_log2, encoding);
}

// Whether all other blocks are done and what they wrote can be read; for all threads of the block.
__device__ bool is_last_block(Counters* counters) {
    __shared__ uint32_t last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(&counters->done, gridDim.x - 1) == gridDim.x - 1;  // and 0 again after the last
        __threadfence();
    }
    __syncthreads();
    return last != 0;
}

// -- encoding ----------------------------------------------------------------------------------

// Layout of the message: fp32's low planes are there if any of their bits is set.
__device__ Layout final_layout(const Task& task) {
    const Layout& a = task.layout;
    if (a.dtype != code_fp32) return a;
    const uint32_t low = task.work.counters->low_bits;
    return Layout::make(a.rows, a.channels, a.dtype, a.row_bits, a.lanes, task.unit_log2, low & 0xff, low & 0xff00);
}

__global__ void low_bits_kernel(Task task) {
    const uint64_t n = task.layout.num_values, channels = task.layout.channels;
    uint32_t bits = 0;
    for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += uint64_t{gridDim.x} * blockDim.x)
        bits |= *reinterpret_cast<const uint32_t*>(task.values + i / channels * task.stride + i % channels * 4);
    bits = __reduce_or_sync(~0u, bits) & 0xffff;
    if (threadIdx.x % 32 == 0 && bits) atomicOr(&task.work.counters->low_bits, bits);
}

// Bytes of all units before `unit`, once they are known; tells those after it. Single-pass prefix sum with decoupled
// look-back (Merrill and Garland 2016): units are handed out in order, so every unit that is waited for is running.
// A status says all that it says in one word, so that nothing else must be in order with it.
__device__ uint64_t find_place(UnitRecord* units, uint64_t unit, uint64_t size, int lane) {
    const auto status = [&](uint64_t i) -> volatile uint64_t& { return units[i].status; };
    if (lane == 0) status(unit) = (unit == 0 ? prefix : aggregate) | size;
    uint64_t before = 0;
    for (int64_t last = static_cast<int64_t>(unit) - 1; last >= 0; last -= 32) {
        const int64_t mine = last - lane;
        uint64_t s = prefix;
        do {
            if (mine >= 0) s = status(mine);
        } while (__any_sync(~0u, s == 0));
        const uint32_t complete = __ballot_sync(~0u, s >= prefix);
        uint64_t part = complete == 0 || lane <= __ffs(static_cast<int>(complete)) - 1 ? s & amount : 0;
        for (int step = 16; step > 0; step /= 2) part += __shfl_xor_sync(~0u, part, step);
        before += part;
        if (complete) break;
    }
    if (lane == 0 && unit != 0) status(unit) = prefix | (before + size);
    return before;
}

// Header and directory; or the raw message, if the coded one did not fit. By `stride` threads, of which this is `first`.
__device__ void finish(const Task& task, const Layout& a, bool raw, uint64_t first, uint64_t stride) {
    uint8_t* const out = task.message;
    CodecResult result{task.work.counters->size, 0, raw};
    if (raw) {
        const uint64_t row_bytes = a.channels * element_size(a.dtype), bytes = a.rows * row_bytes;
        const bool apart = task.stride != row_bytes;
        const uint64_t piece = apart ? row_bytes : 1u << 20;
        for (uint64_t at = 0; at < bytes; at += piece)
            copy_share(static_cast<int>(first), static_cast<int>(stride), out + raw_header_bytes + at,
                       task.values + (apart ? at / row_bytes * task.stride : at), Layout::least(piece, bytes - at));
        if (first != 0) return;
        out[0] = version << 4;
        out[1] = static_cast<uint8_t>(a.dtype);
        for (int i = 2; i < raw_header_bytes; ++i) out[i] = 0;
        result.size = raw_header_bytes + bytes;
        *task.work.result = result;
        return;
    }
    if (a.num_units > 1) {
        uint16_t* const directory = reinterpret_cast<uint16_t*>(out + result.size - task.trailer());  // only even
        for (uint64_t i = first; i < a.num_units; i += stride) {
            const uint32_t entry = task.work.units[i].entry;
            directory[2 * i] = static_cast<uint16_t>(entry);
            directory[2 * i + 1] = static_cast<uint16_t>(entry >> 16);
        }
    }
    if (first != 0) return;
    out[0] = version << 4 | 1;
    out[1] = static_cast<uint8_t>(a.dtype | (a.lanes == 8 ? 0 : a.lanes == 16 ? 1 : 2) << 2);
    out[2] = static_cast<uint8_t>(task.unit_log2);
    if (a.dtype == code_fp32) out[2] |= static_cast<uint8_t>(!a.has_plane0 << 4 | !a.has_plane1 << 5);
    out[3] = a.num_units == 1 ? static_cast<uint8_t>(task.work.units[0].entry >> 18) : 0;
    for (int i = 0; i < 4; ++i) out[4 + i] = 0, out[8 + i] = task.key[i];
    const uint64_t planes_end = a.units - 1;  // the padding byte, if there is one
    const uint64_t used = a.dtype == code_fp32 ? a.plane0 + (a.has_plane0 ? a.num_values : 0) : a.plane1;
    if (used == planes_end) out[planes_end] = 0;
    *task.work.result = result;
}

__global__ void finish_kernel(Task task) {
    finish(task, final_layout(task), task.work.counters->raw != 0, uint64_t{blockIdx.x} * blockDim.x + threadIdx.x,
           uint64_t{gridDim.x} * blockDim.x);
}

// What finish_kernel does, by one block, which also leaves the workspace as it was.
__device__ void finish_here(const Task& task, const Layout& a) {
    Counters* const counters = task.work.counters;
    finish(task, a, counters->raw != 0, threadIdx.x, blockDim.x);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.num_units; i += blockDim.x) task.work.units[i].status = 0;
    if (threadIdx.x == 0) *counters = {};
}

template <int dtype, class Team>
__device__ void encode_units(const Task& task, const Job& job, const uint32_t* windows, const EncodeEntry* tables) {
    const Layout& a = job.layout;
    Counters* const counters = task.work.counters;
    Team team;
    UnitMemory m = memory_of_team<Team>(encode_tables_bytes, task.unit_log2, true);
    for (;;) {
        team.each([&](int rank) {
            if (rank == 0) m.state->index = atomicAdd(&counters->ticket, 1);
        });
        const uint64_t index = m.state->index;
        if (index >= a.num_units) return;
        const Unit u = a.unit(index);
        encode_unit<dtype>(team, job, u, m, windows, tables);
        const uint32_t size = m.state->size, num_escapes = m.state->num_escapes;
        team.serial([&](DeviceWarp& warp) {
            const uint64_t place = find_place(task.work.units, index, size, warp.lane);
            if (warp.lane == 0) m.state->place = a.units + place;
        });
        const uint64_t at = m.state->place, end = at + size + task.trailer();
        const bool fits = end <= task.limit && (a.num_units > 1 || num_escapes <= 255);
        if (fits) place_unit<dtype>(team, job, u, m, task.message + at);
        if (Team::rank() == 0) {
            task.work.units[index].entry = size | num_escapes << 18;
            if (!fits) counters->raw = 1;
            if (index + 1 == a.num_units) counters->size = end;
        }
    }
}

template <int dtype, class Team>
__global__ void __launch_bounds__(most_threads, 2) encode_kernel(Task task) {
    __shared__ Job job;
    EncodeEntry* const tables = reinterpret_cast<EncodeEntry*>(shared_memory);
    uint32_t* const windows = reinterpret_cast<uint32_t*>(tables + max_tables * num_symbols);
    set_job(task, final_layout(task), job);
    copy_table(task.table->num_tables * num_symbols * 2, &task.table->encode[0][0].entry, &tables[0].entry);
    if (threadIdx.x < max_tables) windows[threadIdx.x] = task.table->window[threadIdx.x];
    __syncthreads();
    const Layout& a = job.layout;
    if (a.units >= min_coded_values && a.units + task.trailer() <= task.limit)  // as on the CPU
        encode_units<dtype, Team>(task, job, windows, tables);
    else
        task.work.counters->raw = 1;
    if constexpr (Team::is_block)
        if (is_last_block(task.work.counters)) finish_here(task, a);
}

// -- decoding ----------------------------------------------------------------------------------

__device__ uint32_t directory_entry(const Task& task, uint64_t unit) {
    const uint16_t* const words = reinterpret_cast<const uint16_t*>(task.message + task.size - task.trailer()) + 2 * unit;
    return words[0] | static_cast<uint32_t>(words[1]) << 16;
}

// Offsets of the units from the sizes in the directory, by one block.
__global__ void __launch_bounds__(1024) offsets_kernel(Task task) {
    __shared__ uint64_t sums[1024];
    const uint64_t num_units = task.layout.num_units, share = (num_units + blockDim.x - 1) / blockDim.x;
    const uint64_t start = threadIdx.x * share, stop = start + share < num_units ? start + share : num_units;
    uint64_t mine = 0;
    for (uint64_t i = start; i < stop; ++i) mine += directory_entry(task, i) & 0x3ffff;
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned step = 1; step < blockDim.x; step *= 2) {
        const uint64_t other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += other;
        __syncthreads();
    }
    uint64_t at = task.layout.units + sums[threadIdx.x] - mine;
    for (uint64_t i = start; i < stop; ++i) {
        task.work.units[i].offset = at;
        at += directory_entry(task, i) & 0x3ffff;
    }
}

// Offset of a unit: from the sizes of all before it, or as offsets_kernel left it.
template <class Team>
__device__ uint64_t unit_offset(Team& team, const Task& task, uint64_t index, uint32_t* sum) {
    if constexpr (!Team::is_block) return task.work.units[index].offset;
    team.each([&](int rank) {
        if (rank == 0) *sum = 0;
    });
    team.each([&](int rank) {
        uint32_t mine = 0;
        for (uint64_t i = rank; i < index; i += Team::size) mine += directory_entry(task, i) & 0x3ffff;
        team.add(sum, mine);
    });
    return task.layout.units + *sum;
}

template <int dtype, class Team>
__global__ void __launch_bounds__(most_threads, 2) decode_kernel(Task task) {
    __shared__ Job job;
    uint32_t* const tables = reinterpret_cast<uint32_t*>(shared_memory);
    set_job(task, task.layout, job);
    copy_table(task.table->num_tables * 256, task.table->decode[0], tables);
    __syncthreads();
    Team team;
    UnitMemory m = memory_of_team<Team>(decode_tables_bytes, task.unit_log2, false);
    const uint64_t num_units = task.layout.num_units, end = task.size - task.trailer(), all = uint64_t{gridDim.x} * Team::num();
    for (uint64_t index = uint64_t{blockIdx.x} * Team::num() + Team::index(); index < num_units; index += all) {
        const uint32_t entry = num_units == 1 ? 0 : directory_entry(task, index);
        const uint64_t at = unit_offset(team, task, index, &m.state->sum);
        const uint64_t size = num_units == 1 ? end - at : entry & 0x3ffff;
        // Words need even addresses; all bytes belong to a unit.
        bool ok = at % 2 == 0 && at + size <= end && (index + 1 < num_units || at + size == end);
        if (ok) {
            decode_unit<dtype>(team, job, task.layout.unit(index), task.message + at, static_cast<uint32_t>(size),
                               num_units == 1 ? task.single_escapes : entry >> 18, task.unit_log2, m, tables);
            ok = m.state->ok != 0;
        }
        if (!ok && Team::rank() == 0) task.work.counters->error = 1;
    }
    if (is_last_block(task.work.counters) && threadIdx.x == 0) {
        *task.work.result = {task.size, task.work.counters->error, 0};
        task.work.counters->error = 0;
    }
}

// -- launches ----------------------------------------------------------------------------------

// How a kernel is launched on the current device.
struct Launch {
    unsigned blocks, threads;
    uint32_t shared_bytes;
};

// As many warps with a unit each as a multiprocessor has memory for, in blocks of up to eight.
cudaError_t launch_of(uint64_t num_units, uint32_t tables_bytes, uint32_t unit_bytes, Launch* launch) {
    if (num_units <= few_units) {
        *launch = {static_cast<unsigned>(num_units), most_threads, tables_bytes + unit_bytes};
        return cudaSuccess;
    }
    int device = 0, sms = 0, per_sm = 0, per_block = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto get = [&](int* value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
    };
    get(&sms, cudaDevAttrMultiProcessorCount);
    get(&per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    get(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    unsigned most = 0;
    for (unsigned warps = most_threads / max_lanes; warps > 0; warps /= 2) {
        const uint32_t bytes = tables_bytes + warps * unit_bytes;
        const unsigned blocks = static_cast<unsigned>(per_sm) / (bytes + 2048);
        if (bytes + 1024 > static_cast<uint32_t>(per_block) || blocks * warps <= most) continue;
        most = blocks * warps;
        const uint64_t wanted = ceil_div(num_units, warps), resident = static_cast<uint64_t>(sms) * blocks;
        *launch = {static_cast<unsigned>(wanted < resident ? wanted : resident), warps * max_lanes, bytes};
    }
    return error == cudaSuccess && most == 0 ? cudaErrorInvalidConfiguration : error;
}

cudaError_t start(void (*kernel)(Task), const Launch& launch, const Task& task, cudaStream_t stream) {
    if (launch.shared_bytes > (46u << 10)) {  // 48 KiB are everyone's, less what the kernels name
        const int bytes = static_cast<int>(launch.shared_bytes);
        if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
            return error;
    }
    kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(task);
    return cudaGetLastError();
}

using Kernel = void (*)(Task);
constexpr Kernel encode_kernels[2][3] = {
    {encode_kernel<code_bf16, WarpTeam>, encode_kernel<code_fp16, WarpTeam>, encode_kernel<code_fp32, WarpTeam>},
    {encode_kernel<code_bf16, BlockTeam>, encode_kernel<code_fp16, BlockTeam>, encode_kernel<code_fp32, BlockTeam>}};
constexpr Kernel decode_kernels[2][3] = {
    {decode_kernel<code_bf16, WarpTeam>, decode_kernel<code_fp16, WarpTeam>, decode_kernel<code_fp32, WarpTeam>},
    {decode_kernel<code_bf16, BlockTeam>, decode_kernel<code_fp16, BlockTeam>, decode_kernel<code_fp32, BlockTeam>}};

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

}  // namespace

cudaError_t codec_workspace_bytes(const CodecShape& shape, size_t* bytes) {
    Layout layout;
    if (!make_layout(shape, true, true, &layout)) return cudaErrorInvalidValue;
    *bytes = layout_workspace(nullptr, layout.num_units).bytes;
    return cudaSuccess;
}

cudaError_t codec_encode_cuda(const CodecShape& shape, const void* values, const void* table, const uint8_t key[4],
                              uint8_t* message, void* workspace, cudaStream_t stream) {
    Task task{};
    Launch launch{};
    if (!make_layout(shape, true, true, &task.layout)) return cudaErrorInvalidValue;
    const uint64_t num_units = task.layout.num_units;
    const uint32_t unit_bytes = UnitMemory::num_bytes(shape.unit_log2, true);
    if (const cudaError_t error = launch_of(num_units, encode_tables_bytes, unit_bytes, &launch)) return error;
    task.table = static_cast<const TableImage*>(table);
    task.values = const_cast<uint8_t*>(static_cast<const uint8_t*>(values));
    task.stride = shape.stride;
    task.message = message;
    task.work = layout_workspace(workspace, num_units);
    task.limit = task.layout.num_values * element_size(shape.dtype) + raw_header_bytes;
    task.unit_log2 = shape.unit_log2;
    for (int i = 0; i < 4; ++i) task.key[i] = key[i];
    if (shape.dtype == code_fp32)
        low_bits_kernel<<<static_cast<unsigned>(ceil_div(task.layout.num_values, 65536)), 256, 0, stream>>>(task);
    const bool few = num_units <= few_units;
    if (const cudaError_t error = start(encode_kernels[few][shape.dtype], launch, task, stream)) return error;
    if (few) return cudaSuccess;
    finish_kernel<<<static_cast<unsigned>(num_units < 4096 ? ceil_div(num_units, 4) : 1024), 256, 0, stream>>>(task);
    if (const cudaError_t error = cudaGetLastError()) return error;
    uint8_t* const counters = reinterpret_cast<uint8_t*>(task.work.counters);
    const size_t before = static_cast<size_t>(counters - static_cast<uint8_t*>(workspace));
    return cudaMemsetAsync(counters, 0, task.work.bytes - before, stream);
}

cudaError_t codec_decode_cuda(const CodecShape& shape, const uint8_t* head, const uint8_t* message, size_t size,
                              const void* table, void* values, void* workspace, cudaStream_t stream) {
    Task task{};
    Launch launch{};
    const int missing = head[2] >> 4;
    CodecShape exact = shape;
    exact.unit_log2 = head[2] & 15;
    if (!make_layout(exact, !(missing & 1), !(missing & 2), &task.layout)) return cudaErrorInvalidValue;
    const uint64_t num_units = task.layout.num_units, trailer = num_units == 1 ? 0 : num_units * directory_entry_bytes;
    if (task.layout.units < min_coded_values || size < task.layout.units + trailer || size % 2 != 0)
        return cudaErrorInvalidValue;
    const uint32_t unit_bytes = UnitMemory::num_bytes(exact.unit_log2, false);
    if (const cudaError_t error = launch_of(num_units, decode_tables_bytes, unit_bytes, &launch)) return error;
    task.table = static_cast<const TableImage*>(table);
    task.values = static_cast<uint8_t*>(values);
    task.stride = shape.stride;
    task.message = const_cast<uint8_t*>(message);
    task.work = layout_workspace(workspace, num_units);
    task.size = size;
    task.single_escapes = head[3];
    task.unit_log2 = exact.unit_log2;
    const bool few = num_units <= few_units;
    if (!few) offsets_kernel<<<1, 1024, 0, stream>>>(task);
    return start(decode_kernels[few][shape.dtype], launch, task, stream);
}

}  // namespace bloombee
