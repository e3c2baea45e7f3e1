// bloombee._native_cuda. Importing it needs no driver (the CUDA runtime is linked statically and looks for the driver
// on first use); device_count() is 0 where there is none.
#include <pybind11/pybind11.h>

#include <string>

#include "codec/planes.h"
#include "cuda/planes.h"

namespace py = pybind11;

namespace bloombee {
namespace {

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // forget it: "no driver" is an answer here, not an error
    return 0;
}

using Function = cudaError_t (*)(const uint8_t*, uint8_t*, size_t, int, cudaStream_t);

template <Function function>
void queue(uintptr_t source, uintptr_t out, size_t num_elements, int element_bytes, uintptr_t stream) {
    if (!is_element_size(element_bytes))
        throw py::value_error("element_bytes = " + std::to_string(element_bytes) + ": must be 1, 2 or 4");
    py::gil_scoped_release release;
    const cudaError_t error = function(reinterpret_cast<const uint8_t*>(source), reinterpret_cast<uint8_t*>(out),
                                       num_elements, element_bytes, reinterpret_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

}  // namespace

void bind_codec_cuda(py::module_& m);
void bind_fused_cuda(py::module_& m);
void bind_attention_cuda(py::module_& m);

}  // namespace bloombee

PYBIND11_MODULE(_native_cuda, m, py::mod_gil_not_used()) {
    using namespace bloombee;
    m.doc() = "CUDA kernels of bloombee on raw device pointers; the signatures are in _native_cuda.pyi.";
    m.def("device_count", &device_count);
    m.def("split_planes", &queue<split_planes_cuda>, py::arg("data"), py::arg("out"), py::arg("num_elements"),
          py::arg("element_bytes"), py::arg("stream") = 0);
    m.def("join_planes", &queue<join_planes_cuda>, py::arg("planes"), py::arg("out"), py::arg("num_elements"),
          py::arg("element_bytes"), py::arg("stream") = 0);
    bind_codec_cuda(m);
    bind_fused_cuda(m);
    bind_attention_cuda(m);
}
