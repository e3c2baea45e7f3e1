// Messages by the device's code, on the host: what tests compare with the CPU paths. Slow.
#include "codec/rans_lanes.h"

#include <memory>
#include <vector>

#include "codec/rans_message.h"
#include "codec/rans_unit.h"

namespace bloombee::rans {
namespace {

template <int dtype>
bool encode_units(const Job& job, size_t limit, uint8_t* out, size_t& size, uint8_t& single_escapes) {
    const Layout& a = job.layout;
    const size_t trailer = a.num_units == 1 ? 0 : a.num_units * directory_entry_bytes;
    if (a.units + trailer > limit) return false;
    out[a.units - 1] = 0;
    HostWarp warp;
    WarpMemory memory;
    alignas(4) uint8_t scratch[unit_scratch_bytes];
    std::vector<uint32_t> directory;
    size_t at = a.units;
    for (uint64_t index = 0; index < a.num_units; ++index) {
        const Unit u = a.unit(index);
        const CodedUnit coded = encode_unit<dtype>(warp, job, u, memory, scratch);
        if (coded.size > limit - trailer - at || (a.num_units == 1 && coded.num_escapes > 255)) return false;
        place_unit<dtype>(warp, job, u, coded, memory, out + at);
        at += coded.size;
        directory.push_back(coded.size | coded.num_escapes << 18);
    }
    single_escapes = a.num_units == 1 ? static_cast<uint8_t>(directory[0] >> 18) : 0;
    if (trailer) std::memcpy(out + at, directory.data(), trailer);
    size = at + trailer;
    return true;
}

template <int dtype>
bool decode_units(const Job& job, size_t size) {
    const Layout& a = job.layout;
    const size_t trailer = a.num_units == 1 ? 0 : a.num_units * directory_entry_bytes;
    if (a.num_units > size || size < a.units + trailer) return false;
    const uint8_t* const directory = job.message + size - trailer;
    const uint8_t* at = job.message + a.units;
    HostWarp warp;
    WarpMemory memory;
    for (uint64_t index = 0; index < a.num_units; ++index) {
        const uint32_t entry = trailer ? load<uint32_t>(directory + index * directory_entry_bytes) : 0;
        const size_t bytes = trailer ? entry & 0x3ffff : static_cast<size_t>(directory - at);
        if (bytes > static_cast<size_t>(directory - at)) return false;
        if (!decode_unit<dtype>(warp, job, a.unit(index), at, at + bytes, trailer ? entry >> 18 : job.message[3],
                                memory))
            return false;
        at += bytes;
    }
    return at == directory;
}

}  // namespace

size_t encode_by_lanes(const Shape& shape, const uint8_t* values, size_t stride, const Table& table, int unit_log2,
                       bool plane0, bool plane1, uint8_t* out) {
    const uint64_t n = shape.rows * shape.channels;
    if (n < min_coded_values) return 0;
    const bool fp32 = shape.dtype == code_fp32;
    const Layout a = Layout::make(shape.rows, shape.channels, shape.dtype, table.row_bits, lanes_for(n), unit_log2,
                                  fp32 && plane0, fp32 && plane1);
    if (a.units < words_before) return 0;
    const Job job{a, table.view(), table.row_base, const_cast<uint8_t*>(values), stride, out};
    const size_t limit = bound(shape.num_bytes());
    size_t size = 0;
    uint8_t escapes = 0;
    const bool ok = shape.dtype == code_bf16   ? encode_units<code_bf16>(job, limit, out, size, escapes)
                    : shape.dtype == code_fp16 ? encode_units<code_fp16>(job, limit, out, size, escapes)
                                               : encode_units<code_fp32>(job, limit, out, size, escapes);
    if (!ok) return 0;
    write_head(a, unit_log2, table, escapes, out);
    seal(out, size, &table);
    return size;
}

bool decode_by_lanes(const Shape& shape, const uint8_t* message, size_t size, const Table& table, uint8_t* values,
                     size_t stride) {
    Layout a;
    if (read_head(shape, message, size, table, a) != nullptr) return false;
    const Job job{a, table.view(), table.row_base, values, stride, const_cast<uint8_t*>(message)};
    return shape.dtype == code_bf16   ? decode_units<code_bf16>(job, size)
           : shape.dtype == code_fp16 ? decode_units<code_fp16>(job, size)
                                      : decode_units<code_fp32>(job, size);
}

}  // namespace bloombee::rans
