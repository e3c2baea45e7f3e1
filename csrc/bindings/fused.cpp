// The lanes of the fused CUDA kernels. For tests, on addresses as the kernels have them: the caller answers for the memory.
#include <pybind11/stl.h>

#include <array>

#include "bindings/bindings.h"
#include "fused/lanes.h"

namespace bloombee {
namespace {

using namespace fused;

const void* in(uintptr_t p) { return reinterpret_cast<const void*>(p); }
void* out_of(uintptr_t p) { return reinterpret_cast<void*>(p); }

void check(bool known) {
    if (!known) throw py::value_error("no rows have this type");
}

void norm(const std::array<int64_t, 6>& shape, float epsilon, int dtype, uintptr_t x, uintptr_t weight, uintptr_t out) {
    const auto [rows, inner, outer_stride, inner_stride, width, kind] = shape;
    const NormShape s{rows, inner, outer_stride, inner_stride, static_cast<int>(width), static_cast<int>(kind), epsilon};
    check(norm_by_lanes(s, dtype, in(x), in(weight), out_of(out)));
}

void gate(const std::array<int64_t, 4>& shape, int dtype, uintptr_t gate, uintptr_t up, uintptr_t out) {
    const GateShape s{shape[0], shape[1], static_cast<int>(shape[2]), static_cast<int>(shape[3])};
    check(gate_by_lanes(s, dtype, in(gate), in(up), out_of(out)));
}

void rotary(const std::array<int64_t, 7>& shape, int dtype, uintptr_t x, uintptr_t cosines, uintptr_t sines, uintptr_t out) {
    const RotaryShape s{shape[0],
                        shape[1],
                        shape[2],
                        static_cast<int>(shape[3]),
                        static_cast<int>(shape[4]),
                        static_cast<int>(shape[5]),
                        static_cast<int>(shape[6])};
    check(rotary_by_lanes(s, dtype, in(x), in(cosines), in(sines), out_of(out)));
}

}  // namespace

void bind_fused(py::module_& m) {
    m.def("fused_norm_by_lanes", &norm, py::arg("shape"), py::arg("epsilon"), py::arg("dtype"), py::arg("x"),
          py::arg("weight"), py::arg("out"));
    m.def("fused_gate_by_lanes", &gate, py::arg("shape"), py::arg("dtype"), py::arg("gate"), py::arg("up"), py::arg("out"));
    m.def("fused_rotary_by_lanes", &rotary, py::arg("shape"), py::arg("dtype"), py::arg("x"), py::arg("cosines"),
          py::arg("sines"), py::arg("out"));
}

}  // namespace bloombee
