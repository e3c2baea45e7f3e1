// Messages by the device's code, on the host: what tests compare with the CPU paths. Slow.
#include "codec/rans_lanes.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "codec/rans_message.h"
#include "codec/rans_unit.h"

namespace bloombee::rans {
namespace {

using Team = HostTeam<64>;

// A table's image and the memory of a team, as the device has them.
struct Device {
    std::vector<uint8_t> bytes;
    std::unique_ptr<TableImage, decltype(&std::free)> image;
    std::unique_ptr<uint8_t, decltype(&std::free)> memory;
    UnitMemory unit;

    Device(const Table& table, int unit_log2, bool encoding)
        : bytes(device_image(table)), image(aligned<TableImage>(bytes.size()), &std::free),
          memory(aligned<uint8_t>(UnitMemory::num_bytes(unit_log2, encoding)), &std::free),
          unit(UnitMemory::at(memory.get(), unit_log2, encoding)) {
        std::memcpy(static_cast<void*>(image.get()), bytes.data(), bytes.size());
    }
    template <class T>
    static T* aligned(size_t n) {
        void* const p = std::aligned_alloc(64, (n + 63) / 64 * 64);
        std::memset(p, 0, (n + 63) / 64 * 64);
        return static_cast<T*>(p);
    }
};

template <int dtype>
bool encode_units(const Job& job, size_t limit, Device& device, uint8_t* out, size_t& size, uint8_t& single_escapes) {
    const Layout& a = job.layout;
    const size_t trailer = a.num_units == 1 ? 0 : a.num_units * directory_entry_bytes;
    if (a.units + trailer > limit) return false;
    out[a.units - 1] = 0;
    Team team;
    std::vector<uint32_t> directory;
    size_t at = a.units;
    for (uint64_t index = 0; index < a.num_units; ++index) {
        const Unit u = a.unit(index);
        encode_unit<dtype>(team, job, u, device.unit, job.tables.window, job.tables.encode);
        const UnitState& coded = *device.unit.state;
        if (coded.size > limit - trailer - at || (a.num_units == 1 && coded.num_escapes > 255)) return false;
        place_unit<dtype>(team, job, u, device.unit, out + at);
        at += coded.size;
        directory.push_back(coded.size | coded.num_escapes << 18);
    }
    single_escapes = a.num_units == 1 ? static_cast<uint8_t>(directory[0] >> 18) : 0;
    if (trailer) std::memcpy(out + at, directory.data(), trailer);
    size = at + trailer;
    return true;
}

template <int dtype>
bool decode_units(const Job& job, size_t size, int unit_log2, Device& device) {
    const Layout& a = job.layout;
    const size_t trailer = a.num_units == 1 ? 0 : a.num_units * directory_entry_bytes;
    if (a.num_units > size || size < a.units + trailer) return false;
    const uint8_t* const directory = job.message + size - trailer;
    const uint8_t* at = job.message + a.units;
    Team team;
    for (uint64_t index = 0; index < a.num_units; ++index) {
        const uint32_t entry = trailer ? load<uint32_t>(directory + index * directory_entry_bytes) : 0;
        const size_t bytes = trailer ? entry & 0x3ffff : static_cast<size_t>(directory - at);
        if (bytes > static_cast<size_t>(directory - at)) return false;
        decode_unit<dtype>(team, job, a.unit(index), at, static_cast<uint32_t>(bytes),
                           trailer ? entry >> 18 : job.message[3], unit_log2, device.unit, job.tables.decode);
        if (!device.unit.state->ok) return false;
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
    const size_t limit = bound(shape.num_bytes());
    Device device(table, unit_log2, true);
    std::vector<uint8_t> message(limit);  // aligned
    const Job job{a,      UnitTables::of(*device.image), table.row_base, const_cast<uint8_t*>(values),
                  stride, message.data()};
    size_t size = 0;
    uint8_t escapes = 0;
    uint8_t* const to = message.data();
    const bool ok = shape.dtype == code_bf16   ? encode_units<code_bf16>(job, limit, device, to, size, escapes)
                    : shape.dtype == code_fp16 ? encode_units<code_fp16>(job, limit, device, to, size, escapes)
                                               : encode_units<code_fp32>(job, limit, device, to, size, escapes);
    if (!ok) return 0;
    write_head(a, unit_log2, table, escapes, to);
    seal(to, size, &table);
    std::memcpy(out, to, size);
    return size;
}

bool decode_by_lanes(const Shape& shape, const uint8_t* message, size_t size, const Table& table, uint8_t* values,
                     size_t stride) {
    Layout a;
    if (read_head(shape, message, size, table, a) != nullptr) return false;
    const int unit_log2 = message[2] & 15;
    Device device(table, unit_log2, false);
    std::vector<uint8_t> aligned(message, message + size);
    const Job job{a, UnitTables::of(*device.image), table.row_base, values, stride, aligned.data()};
    return shape.dtype == code_bf16   ? decode_units<code_bf16>(job, size, unit_log2, device)
           : shape.dtype == code_fp16 ? decode_units<code_fp16>(job, size, unit_log2, device)
                                      : decode_units<code_fp32>(job, size, unit_log2, device);
}

}  // namespace bloombee::rans
