// Attention's part of bloombee._native_cuda.
#include "bindings/attention_task.h"
#include "cuda/attention.h"

namespace bloombee {
namespace {

namespace py = pybind11;

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    if (error == cudaErrorInvalidValue) throw py::value_error("no kernel is made for this dtype and these widths");
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

void attend(const attention::Task& task, uintptr_t stream) {
    check(attention::attend_cuda(task, reinterpret_cast<cudaStream_t>(stream)));
}

void write(const attention::WriteTask& task, uintptr_t stream) {
    check(attention::write_cuda(task, reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace

void bind_attention_cuda(py::module_& m) { attention::bind_attention<attend, write>(m); }

}  // namespace bloombee
