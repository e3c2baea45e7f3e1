// The codec's part of bloombee._native_cuda.
#include <pybind11/pybind11.h>

#include <string>

#include "codec/planes.h"
#include "cuda/codec.h"

namespace py = pybind11;

namespace bloombee {
namespace {

void check(cudaError_t error) {
    if (error == cudaErrorInvalidValue) throw py::value_error("no coded message has this shape, table or head");
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

size_t workspace_bytes(uint64_t rows, uint64_t channels, int dtype, int row_bits, int unit_log2) {
    size_t bytes = 0;
    check(codec_workspace_bytes({rows, channels, dtype, row_bits, unit_log2, 0}, &bytes));
    return bytes;
}

void encode(uintptr_t values, uint64_t stride, uint64_t rows, uint64_t channels, int dtype, int row_bits, int unit_log2,
            uintptr_t table, const py::bytes& key, uintptr_t message, uintptr_t workspace, uintptr_t stream) {
    const std::string name = key;
    if (name.size() != 4) throw py::value_error("key of " + std::to_string(name.size()) + " bytes: must be 4");
    py::gil_scoped_release release;
    check(codec_encode_cuda({rows, channels, dtype, row_bits, unit_log2, stride}, reinterpret_cast<const void*>(values),
                            reinterpret_cast<const void*>(table), reinterpret_cast<const uint8_t*>(name.data()),
                            reinterpret_cast<uint8_t*>(message), reinterpret_cast<void*>(workspace),
                            reinterpret_cast<cudaStream_t>(stream)));
}

void decode(const py::bytes& head, uintptr_t message, size_t size, uintptr_t values, uint64_t stride, uint64_t rows,
            uint64_t channels, int dtype, int row_bits, uintptr_t table, uintptr_t workspace, uintptr_t stream) {
    const std::string first = head;
    if (first.size() < 12) throw py::value_error("head of " + std::to_string(first.size()) + " bytes: must be 12");
    py::gil_scoped_release release;
    check(codec_decode_cuda({rows, channels, dtype, row_bits, 0, stride},
                            reinterpret_cast<const uint8_t*>(first.data()), reinterpret_cast<const uint8_t*>(message),
                            size, reinterpret_cast<const void*>(table), reinterpret_cast<void*>(values),
                            reinterpret_cast<void*>(workspace), reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace

void bind_codec_cuda(py::module_& m) {
    m.def("codec_workspace_bytes", &workspace_bytes, py::arg("rows"), py::arg("channels"), py::arg("dtype"),
          py::arg("row_bits"), py::arg("unit_log2") = 14);
    m.def("codec_encode", &encode, py::arg("values"), py::arg("stride"), py::arg("rows"), py::arg("channels"),
          py::arg("dtype"), py::arg("row_bits"), py::arg("unit_log2"), py::arg("table"), py::arg("key"),
          py::arg("message"), py::arg("workspace"), py::arg("stream") = 0);
    m.def("codec_decode", &decode, py::arg("head"), py::arg("message"), py::arg("size"), py::arg("values"),
          py::arg("stride"), py::arg("rows"), py::arg("channels"), py::arg("dtype"), py::arg("row_bits"),
          py::arg("table"), py::arg("workspace"), py::arg("stream") = 0);
}

}  // namespace bloombee
