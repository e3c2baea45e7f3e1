// The arguments of attention, alike in bloombee._native (lane by lane on the host) and bloombee._native_cuda.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "attention/layout.h"

namespace bloombee::attention {

namespace py = pybind11;

template <class T = const uint8_t>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline void check_heads(int heads, int kv_heads) {
    if (kv_heads < 1 || heads < kv_heads || heads % kv_heads != 0)
        throw py::value_error(std::to_string(heads) + " heads over " + std::to_string(kv_heads) + " of keys");
}

// `attend(task, stream)` and `write(task, stream)` raise what they have to.
template <void (*attend)(const Task&, uintptr_t), void (*write)(const WriteTask&, uintptr_t)>
void bind_attention(py::module_& m) {
    m.def(
        "paged_attend",
        [](uintptr_t query, int64_t query_head, int64_t query_row, uintptr_t keys, uintptr_t values, int64_t num_slots,
           uintptr_t out, uintptr_t sinks, uintptr_t tables, uintptr_t parts, uintptr_t arrived, float scale, float cap,
           int dtype, int group, int window, int page_size, int heads, int kv_heads, int key_dim, int value_dim,
           int narrow_bands, int wide_bands, int narrow_items, int wide_items, uintptr_t stream) {
            check_heads(heads, kv_heads);
            const int64_t bytes = dtype == float32 ? 4 : 2;
            const Task task{pointer<>(query), query_head, query_row, pointer<>(keys), pointer<>(values),
                            num_slots * key_dim * bytes, num_slots * value_dim * bytes, pointer<uint8_t>(out),
                            pointer<>(sinks), pointer<const int32_t>(tables), pointer<uint8_t>(parts),
                            pointer<uint32_t>(arrived), scale, cap, dtype, group, window, page_size, heads, kv_heads,
                            key_dim, value_dim, {narrow_bands, wide_bands}, {narrow_items, wide_items}};
            py::gil_scoped_release release;
            attend(task, stream);
        },
        py::kw_only(), py::arg("query"), py::arg("query_head"), py::arg("query_row"), py::arg("keys"),
        py::arg("values"), py::arg("num_slots"), py::arg("out"), py::arg("sinks"), py::arg("tables"), py::arg("parts"),
        py::arg("arrived"), py::arg("scale"), py::arg("cap"), py::arg("dtype"), py::arg("group"), py::arg("window"),
        py::arg("page_size"), py::arg("heads"), py::arg("kv_heads"), py::arg("key_dim"), py::arg("value_dim"),
        py::arg("narrow_bands"), py::arg("wide_bands"), py::arg("narrow_items"), py::arg("wide_items"),
        py::arg("stream") = 0);
    m.def(
        "paged_write",
        [](uintptr_t keys, int64_t key_head, int64_t key_row, uintptr_t values, int64_t value_head, int64_t value_row,
           uintptr_t held_keys, uintptr_t held_values, uintptr_t slots, int64_t num_slots, int rows, int kv_heads,
           int key_bytes, int value_bytes, uintptr_t stream) {
            if (key_bytes % 16 != 0 || value_bytes % 16 != 0) throw py::value_error("rows of heads must be of 16 bytes each");
            const WriteTask task{pointer<>(keys), pointer<>(values), key_head, key_row, value_head, value_row,
                                 pointer<uint8_t>(held_keys), pointer<uint8_t>(held_values),
                                 pointer<const int32_t>(slots), num_slots, rows, kv_heads, key_bytes, value_bytes};
            py::gil_scoped_release release;
            write(task, stream);
        },
        py::kw_only(), py::arg("keys"), py::arg("key_head"), py::arg("key_row"), py::arg("values"),
        py::arg("value_head"), py::arg("value_row"), py::arg("held_keys"), py::arg("held_values"), py::arg("slots"),
        py::arg("num_slots"), py::arg("rows"), py::arg("kv_heads"), py::arg("key_bytes"), py::arg("value_bytes"),
        py::arg("stream") = 0);
}

}  // namespace bloombee::attention
