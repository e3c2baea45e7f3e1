#include "codec/checksum.h"

#include "bindings/bindings.h"

namespace bloombee {
namespace {

uint32_t checksum(const py::buffer& data, uint32_t initial) {
    const BufferView view = BufferView::bytes(data);
    py::gil_scoped_release release;
    return crc32c(view.data(), view.size_bytes(), initial);
}

}  // namespace

void bind_checksum(py::module_& m) { m.def("crc32c", &checksum, py::arg("data"), py::arg("initial") = 0); }

}  // namespace bloombee
