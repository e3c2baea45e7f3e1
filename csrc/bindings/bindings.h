// Shared by the files of bloombee._native: the list of bind functions, and views of Python buffers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace bloombee {

namespace py = pybind11;

// One per file of this folder; called in this order by module.cpp.
void bind_isa(py::module_& m);
void bind_planes(py::module_& m);
void bind_checksum(py::module_& m);
void bind_codec(py::module_& m);
void bind_sampler(py::module_& m);
void bind_plan(py::module_& m);
void bind_fused(py::module_& m);
void bind_attention(py::module_& m);

// A C-contiguous buffer of a Python object, held until this goes away. Made and destroyed with the GIL held; its
// pointers may be used without it.
class BufferView {
  public:
    // Any contiguous object as bytes. Raises what the object raises (TypeError, BufferError).
    static BufferView bytes(py::handle object, bool writable = false) {
        return BufferView(object, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO);
    }

    // A contiguous array of `T` items; `name` is for the message of the ValueError that anything else gives.
    template <class T>
    static BufferView array(py::handle object, const char* name, bool writable = false) {
        BufferView view(object, (writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO) | PyBUF_FORMAT);
        const std::string format = view.view_.format ? view.view_.format : "B";
        if (view.view_.itemsize != static_cast<py::ssize_t>(sizeof(T)) || !is_format<T>(format))
            throw py::value_error(std::string(name) + ": items of format '" + format + "', must be '" +
                                  py::format_descriptor<T>::format() + "'");
        return view;
    }

    BufferView(BufferView&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
    BufferView(const BufferView&) = delete;
    BufferView& operator=(const BufferView&) = delete;
    ~BufferView() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }

    size_t size_bytes() const { return static_cast<size_t>(view_.len); }
    size_t size() const { return static_cast<size_t>(view_.len / view_.itemsize); }
    int ndim() const { return view_.ndim; }
    size_t shape(int axis) const { return static_cast<size_t>(view_.shape[axis]); }
    template <class T = uint8_t>
    T* data() const {
        return static_cast<T*>(view_.buf);
    }

  private:
    BufferView(py::handle object, int flags) {
        if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw py::error_already_set();
    }

    // Native codes name one type in several ways: 'L' and 'Q' are both 8 bytes where long is.
    template <class T>
    static bool is_format(std::string format) {
        if (!format.empty() && (format[0] == '<' || format[0] == '@' || format[0] == '=')) format.erase(0, 1);
        if (format.size() != 1) return false;
        const char* kinds = std::is_floating_point_v<T> ? "efdg" : std::is_signed_v<T> ? "bhilq" : "BHILQ";
        return std::string(kinds).find(format[0]) != std::string::npos;
    }

    Py_buffer view_{};
};

// Whether two views share memory.
inline bool overlap(const BufferView& a, const BufferView& b) {
    const auto *p = a.data(), *q = b.data();
    return p < q + b.size_bytes() && q < p + a.size_bytes();
}

}  // namespace bloombee
