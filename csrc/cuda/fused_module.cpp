// The fused kernels' part of bloombee._native_cuda. Shapes come as tuples, as bloombee/engine/fused.py makes them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "cuda/fused.h"

namespace py = pybind11;

namespace bloombee {
namespace {

using namespace fused;

void check(cudaError_t error) {
    if (error == cudaErrorInvalidValue) throw py::value_error("no rows have this shape, kind or type");
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

const void* in(uintptr_t p) { return reinterpret_cast<const void*>(p); }
void* out_of(uintptr_t p) { return reinterpret_cast<void*>(p); }

void norm(const std::array<int64_t, 6>& shape, float epsilon, int dtype, uintptr_t x, uintptr_t weight, uintptr_t out,
          uintptr_t stream) {
    const auto [rows, inner, outer_stride, inner_stride, width, kind] = shape;
    const NormShape s{rows, inner, outer_stride, inner_stride, static_cast<int>(width), static_cast<int>(kind), epsilon};
    check(norm_cuda(s, dtype, in(x), in(weight), out_of(out), reinterpret_cast<cudaStream_t>(stream)));
}

void gate(const std::array<int64_t, 4>& shape, int dtype, uintptr_t gate, uintptr_t up, uintptr_t out, uintptr_t stream) {
    const GateShape s{shape[0], shape[1], static_cast<int>(shape[2]), static_cast<int>(shape[3])};
    check(gate_cuda(s, dtype, in(gate), in(up), out_of(out), reinterpret_cast<cudaStream_t>(stream)));
}

RotaryShape rotary_shape(const std::array<int64_t, 7>& s) {
    return {s[0], s[1], s[2], static_cast<int>(s[3]), static_cast<int>(s[4]), static_cast<int>(s[5]), static_cast<int>(s[6])};
}

void rotary(const std::array<int64_t, 7>& queries, const std::array<int64_t, 7>& keys, int dtype, uintptr_t q, uintptr_t k,
            uintptr_t cosines, uintptr_t sines, uintptr_t q_out, uintptr_t k_out, uintptr_t stream) {
    check(rotary_cuda(rotary_shape(queries), rotary_shape(keys), dtype, in(q), in(k), in(cosines), in(sines),
                      out_of(q_out), out_of(k_out), reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace

void bind_fused_cuda(py::module_& m) {
    m.def("fused_norm", &norm, py::arg("shape"), py::arg("epsilon"), py::arg("dtype"), py::arg("x"), py::arg("weight"),
          py::arg("out"), py::arg("stream") = 0);
    m.def("fused_gate", &gate, py::arg("shape"), py::arg("dtype"), py::arg("gate"), py::arg("up"), py::arg("out"),
          py::arg("stream") = 0);
    m.def("fused_rotary", &rotary, py::arg("queries"), py::arg("keys"), py::arg("dtype"), py::arg("q"), py::arg("k"),
          py::arg("cosines"), py::arg("sines"), py::arg("q_out"), py::arg("k_out"), py::arg("stream") = 0);
}

}  // namespace bloombee
