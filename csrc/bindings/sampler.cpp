#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <span>

#include "bindings/bindings.h"
#include "sampler/noise.h"
#include "sampler/sample.h"

namespace bloombee {
namespace {

// Positive size, small enough for weights not to overflow.
size_t checked_vocabulary(const BufferView& logits, int axis) {
    if (logits.ndim() != axis + 1)
        throw py::value_error("logits: " + std::to_string(logits.ndim()) + " axes, must be " + std::to_string(axis + 1));
    const size_t num_tokens = logits.shape(axis);
    if (num_tokens == 0 || num_tokens > max_tokens)
        throw py::value_error("logits: " + std::to_string(num_tokens) + " tokens a row, must be 1 to 2^23");
    return num_tokens;
}

void check_params(const SampleParams& p, size_t row) {
    const auto refuse = [row](const char* field, double value, const char* allowed) {
        throw py::value_error("row " + std::to_string(row) + ": " + field + " = " + std::to_string(value) + ", must be " +
                              allowed);
    };
    if (!(p.temperature >= 0.0 && p.temperature <= max_temperature)) refuse("temperature", p.temperature, "0 to 1e18");
    if (!(p.top_p > 0.0 && p.top_p <= 1.0)) refuse("top_p", p.top_p, "in (0, 1]");
    if (!(p.min_p >= 0.0 && p.min_p <= 1.0)) refuse("min_p", p.min_p, "in [0, 1]");
}

template <class T>
BufferView column(const py::buffer& object, const char* name, size_t rows, bool writable = false) {
    BufferView view = BufferView::array<T>(object, name, writable);
    if (view.ndim() != 1 || view.shape(0) != rows)
        throw py::value_error(std::string(name) + ": must have one item for each of " + std::to_string(rows) + " rows");
    return view;
}

// [rows, words] of a word for each 64 tokens; empty: none.
std::optional<BufferView> checked_masks(const std::optional<py::buffer>& masks, size_t rows, size_t num_tokens) {
    if (!masks) return std::nullopt;
    BufferView view = BufferView::array<uint64_t>(*masks, "masks");
    const size_t words = (num_tokens + block_tokens - 1) / block_tokens;
    if (view.ndim() != 2 || view.shape(0) != rows || view.shape(1) != words)
        throw py::value_error("masks: must be " + std::to_string(rows) + " rows of " + std::to_string(words) + " words");
    return view;
}

void sample_rows(const py::buffer& logits, const py::buffer& out, const py::buffer& temperature, const py::buffer& top_k,
                 const py::buffer& top_p, const py::buffer& min_p, const py::buffer& seed, const py::buffer& position,
                 const std::optional<py::buffer>& masks) {
    const BufferView view = BufferView::array<float>(logits, "logits");
    const size_t num_tokens = checked_vocabulary(view, 1), rows = view.shape(0);
    const BufferView ids = column<uint32_t>(out, "out", rows, true);
    const BufferView temperatures = column<double>(temperature, "temperature", rows);
    const BufferView top_ks = column<uint32_t>(top_k, "top_k", rows);
    const BufferView top_ps = column<double>(top_p, "top_p", rows), min_ps = column<double>(min_p, "min_p", rows);
    const BufferView seeds = column<uint64_t>(seed, "seed", rows), positions = column<uint64_t>(position, "position", rows);
    const auto params = [&](size_t i) -> SampleParams {
        return {temperatures.data<double>()[i], top_ks.data<uint32_t>()[i], top_ps.data<double>()[i],
                min_ps.data<double>()[i], {seeds.data<uint64_t>()[i], positions.data<uint64_t>()[i]}};
    };
    for (size_t i = 0; i < rows; ++i) check_params(params(i), i);
    const std::optional<BufferView> allowed = checked_masks(masks, rows, num_tokens);
    py::gil_scoped_release release;
    for (size_t i = 0; i < rows; ++i) {
        const uint64_t* mask = allowed ? allowed->data<uint64_t>() + i * allowed->shape(1) : nullptr;
        ids.data<uint32_t>()[i] = sample_row(view.data<float>() + i * num_tokens, num_tokens, mask, params(i));
    }
}

void log_softmax_at(const py::buffer& logits, const py::buffer& ids, const py::buffer& out) {
    const BufferView row = BufferView::array<float>(logits, "logits");
    const size_t num_tokens = checked_vocabulary(row, 0);
    const BufferView wanted = BufferView::array<uint32_t>(ids, "ids");
    const BufferView values = column<double>(out, "out", wanted.size(), true);
    const std::span<const uint32_t> tokens(wanted.data<uint32_t>(), wanted.size());
    for (const uint32_t token : tokens)
        if (token >= num_tokens)
            throw py::value_error("ids: " + std::to_string(token) + ", must be < " + std::to_string(num_tokens));
    py::gil_scoped_release release;
    log_softmax(row.data<float>(), num_tokens, tokens, {values.data<double>(), values.size()});
}

size_t top_tokens_into(const py::buffer& logits, const py::buffer& out) {
    const BufferView row = BufferView::array<float>(logits, "logits");
    const size_t num_tokens = checked_vocabulary(row, 0);
    const BufferView ids = BufferView::array<uint32_t>(out, "out", true);
    py::gil_scoped_release release;
    return top_tokens(row.data<float>(), num_tokens, {ids.data<uint32_t>(), ids.size()});
}

void gumbel_noise(const py::buffer& ids, const py::buffer& out, uint64_t seed, uint64_t position) {
    const BufferView tokens = BufferView::array<uint32_t>(ids, "ids");
    const BufferView values = column<double>(out, "out", tokens.size(), true);
    py::gil_scoped_release release;
    for (size_t i = 0; i < tokens.size(); ++i)
        values.data<double>()[i] = gumbel_of(noise_bits({seed, position}, tokens.data<uint32_t>()[i]));
}

py::tuple philox_words(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
    const auto words = philox::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    return py::make_tuple(words.w[0], words.w[1], words.w[2], words.w[3]);
}

}  // namespace

void bind_sampler(py::module_& m) {
    m.def("sample_rows", &sample_rows, py::arg("logits"), py::arg("out"), py::kw_only(), py::arg("temperature"),
          py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("seed"), py::arg("position"),
          py::arg("masks") = py::none());
    m.def("log_softmax", &log_softmax_at, py::arg("logits"), py::arg("ids"), py::arg("out"));
    m.def("top_tokens", &top_tokens_into, py::arg("logits"), py::arg("out"));
    m.def("gumbel_noise", &gumbel_noise, py::arg("ids"), py::arg("out"), py::kw_only(), py::arg("seed"),
          py::arg("position"));
    m.def("philox4x32", &philox_words, py::arg("counter"), py::arg("key"));
}

}  // namespace bloombee
