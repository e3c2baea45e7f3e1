#include "codec/rans.h"

#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "codec/rans_lanes.h"
#include "codec/rans_ops.h"
#include "codec/rans_image.h"

namespace bloombee {
namespace {

using rans::Shape;
using TablePtr = std::shared_ptr<const rans::Table>;

// A matrix of a Python object: its rows may lie apart. Anything else that is not contiguous is copied once, for
// reading only. Made and destroyed with the GIL held.
class Matrix {
  public:
    Matrix(py::handle object, const Shape& shape, const char* name, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_STRIDED : PyBUF_STRIDED_RO) != 0)
            throw py::error_already_set();
        const size_t size = static_cast<size_t>(view_.len);
        const bool fits = size == shape.num_bytes();
        stride_ = shape.row_bytes();
        data_ = static_cast<uint8_t*>(view_.buf);
        const bool contiguous = PyBuffer_IsContiguous(&view_, 'C') != 0;
        const bool rows_apart = fits && view_.ndim == 2 && static_cast<uint64_t>(view_.shape[0]) == shape.rows &&
                                view_.shape[1] > 0 && view_.strides[1] == view_.itemsize &&
                                view_.strides[0] >= static_cast<py::ssize_t>(stride_);
        if (fits && !contiguous && rows_apart) {
            stride_ = static_cast<size_t>(view_.strides[0]);
        } else if (fits && !contiguous && !writable) {
            copy_.resize(size);
            if (PyBuffer_ToContiguous(copy_.data(), &view_, view_.len, 'C') != 0) fail();
            data_ = copy_.data();
        } else if (!fits || !contiguous) {
            PyBuffer_Release(&view_);
            throw py::value_error(std::string(name) + " of " + std::to_string(size) + " bytes: must be " +
                                  std::to_string(shape.num_bytes()) + " bytes whose rows are contiguous");
        }
    }
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;
    ~Matrix() { PyBuffer_Release(&view_); }

    uint8_t* data() const { return data_; }
    size_t stride() const { return stride_; }

  private:
    [[noreturn]] void fail() {
        PyBuffer_Release(&view_);
        throw py::error_already_set();
    }

    Py_buffer view_{};
    uint8_t* data_ = nullptr;
    size_t stride_ = 0;
    std::vector<uint8_t> copy_;
};

Shape checked_shape(uint64_t rows, uint64_t channels, int dtype) {
    constexpr uint64_t most = uint64_t{1} << 40;
    if (dtype < 0 || dtype > rans::code_other)
        throw py::value_error("dtype code " + std::to_string(dtype) + ": must be 0 to 3");
    if (channels > most || (channels != 0 && rows > most / channels))
        throw py::value_error("shape [" + std::to_string(rows) + ", " + std::to_string(channels) + "] is too large");
    return {rows, channels, dtype};
}

TablePtr make_table(const py::buffer& blob, const py::buffer& digest) {
    const BufferView bytes = BufferView::bytes(blob), name = BufferView::bytes(digest);
    if (name.size_bytes() != rans::digest_bytes)
        throw py::value_error("digest of " + std::to_string(name.size_bytes()) + " bytes: must be 16");
    std::string why;
    TablePtr table = rans::Table::parse(bytes.data(), bytes.size_bytes(), name.data(), why);
    if (!table) throw py::value_error("table: " + why);
    return table;
}

size_t encode(const py::buffer& values, uint64_t rows, uint64_t channels, int dtype, const rans::Table* table,
              const py::buffer& out, int unit_log2) {
    const Shape shape = checked_shape(rows, channels, dtype);
    if (table && (table->dtype != dtype || table->channels != channels))
        throw py::value_error("table is for another dtype or width");
    if (unit_log2 < 8 || unit_log2 > rans::max_unit_log2)
        throw py::value_error("unit_log2 = " + std::to_string(unit_log2) + ": must be 8 to 14");
    const Matrix from(values, shape, "data", false);
    const BufferView to = BufferView::bytes(out, true);
    if (to.size_bytes() < rans::bound(shape.num_bytes()))
        throw py::value_error("out of " + std::to_string(to.size_bytes()) + " bytes: must be at least bound(), " +
                              std::to_string(rans::bound(shape.num_bytes())));
    py::gil_scoped_release release;
    return rans::encode(shape, from.data(), from.stride(), table, unit_log2, to.data());
}

// None, or what is wrong with the message.
const char* decode(const py::buffer& message, const py::buffer& out, uint64_t rows, uint64_t channels, int dtype,
                   const rans::Table* table) {
    const Shape shape = checked_shape(rows, channels, dtype);
    const BufferView from = BufferView::bytes(message);
    const Matrix to(out, shape, "out", true);
    py::gil_scoped_release release;
    return rans::decode(shape, from.data(), from.size_bytes(), table, to.data(), to.stride());
}

// The device's code on the host: what a message would be (None: raw), and whether it decodes to `values`.
py::object encode_by_lanes(const py::buffer& values, uint64_t rows, uint64_t channels, int dtype,
                           const rans::Table& table, int unit_log2, bool plane0, bool plane1) {
    const Shape shape = checked_shape(rows, channels, dtype);
    const Matrix from(values, shape, "data", false);
    std::vector<uint8_t> out(rans::bound(shape.num_bytes()));
    const size_t size =
        rans::encode_by_lanes(shape, from.data(), from.stride(), table, unit_log2, plane0, plane1, out.data());
    if (size == 0) return py::none();
    return py::bytes(reinterpret_cast<const char*>(out.data()), size);
}

bool decode_by_lanes(const py::buffer& message, const py::buffer& out, uint64_t rows, uint64_t channels, int dtype,
                     const rans::Table& table) {
    const Shape shape = checked_shape(rows, channels, dtype);
    const BufferView from = BufferView::bytes(message);
    const Matrix to(out, shape, "out", true);
    return rans::decode_by_lanes(shape, from.data(), from.size_bytes(), table, to.data(), to.stride());
}

void seal(const py::buffer& message, const rans::Table* table) {
    const BufferView bytes = BufferView::bytes(message, true);
    if (bytes.size_bytes() < rans::raw_header_bytes) throw py::value_error("message is shorter than its header");
    py::gil_scoped_release release;
    rans::seal(bytes.data(), bytes.size_bytes(), table);
}

bool check(const py::buffer& message, const rans::Table* table) {
    const BufferView bytes = BufferView::bytes(message);
    py::gil_scoped_release release;
    return rans::check(bytes.data(), bytes.size_bytes(), table);
}

py::bytes device_image(const rans::Table& table) {
    const std::vector<uint8_t> image = rans::device_image(table);
    return py::bytes(reinterpret_cast<const char*>(image.data()), image.size());
}

}  // namespace

void bind_codec(py::module_& m) {
    py::class_<rans::Table, std::shared_ptr<rans::Table>>(m, "CodecTable")
        .def(py::init([](const py::buffer& blob, const py::buffer& digest) {
                 return std::const_pointer_cast<rans::Table>(make_table(blob, digest));
             }),
             py::arg("blob"), py::arg("digest"))
        .def("device_image", &device_image);
    m.def("codec_encode", &encode, py::arg("data"), py::arg("rows"), py::arg("channels"), py::arg("dtype"),
          py::arg("table").none(true), py::arg("out"), py::arg("unit_log2") = rans::default_unit_log2);
    m.def("codec_decode", &decode, py::arg("message"), py::arg("out"), py::arg("rows"), py::arg("channels"),
          py::arg("dtype"), py::arg("table").none(true));
    m.def("codec_seal", &seal, py::arg("message"), py::arg("table").none(true));
    m.def("codec_check", &check, py::arg("message"), py::arg("table").none(true));
    m.def("codec_encode_by_lanes", &encode_by_lanes, py::arg("data"), py::arg("rows"), py::arg("channels"),
          py::arg("dtype"), py::arg("table"), py::arg("unit_log2") = rans::default_unit_log2, py::arg("plane0") = true,
          py::arg("plane1") = true);
    m.def("codec_decode_by_lanes", &decode_by_lanes, py::arg("message"), py::arg("out"), py::arg("rows"),
          py::arg("channels"), py::arg("dtype"), py::arg("table"));
    m.def("codec_isa", [] { return rans::current_ops().name; });
}

}  // namespace bloombee
