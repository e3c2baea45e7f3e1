#include "bindings/bindings.h"
#include "codec/planes.h"
#include "codec/planes_cpu.h"

namespace bloombee {
namespace {

using Function = void (*)(const uint8_t*, uint8_t*, size_t, int);

template <Function function>
void checked(const py::buffer& source, const py::buffer& out, int element_bytes) {
    if (!is_element_size(element_bytes))
        throw py::value_error("element_bytes = " + std::to_string(element_bytes) + ": must be 1, 2 or 4");
    const BufferView from = BufferView::bytes(source), to = BufferView::bytes(out, true);
    const size_t size = from.size_bytes();
    if (size != to.size_bytes() || size % element_bytes != 0)
        throw py::value_error("source of " + std::to_string(size) + " bytes, out of " + std::to_string(to.size_bytes()) +
                              ": must be equal and a multiple of element_bytes = " + std::to_string(element_bytes));
    if (overlap(from, to)) throw py::value_error("source and out overlap");
    py::gil_scoped_release release;
    function(from.data(), to.data(), size / element_bytes, element_bytes);
}

}  // namespace

void bind_planes(py::module_& m) {
    m.def("split_planes", &checked<split_planes>, py::arg("data"), py::arg("out"), py::arg("element_bytes"));
    m.def("join_planes", &checked<join_planes>, py::arg("planes"), py::arg("out"), py::arg("element_bytes"));
}

}  // namespace bloombee
