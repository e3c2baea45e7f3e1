#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "bindings/bindings.h"
#include "plan/solver.h"

namespace bloombee {
namespace {

using plan::Chain;
using plan::Instance;
using plan::Solution;
using plan::Solver;

template <class T>
std::vector<T> values(const py::dict& from, const char* name, size_t size) {
    const BufferView view = BufferView::array<T>(from[name], name);
    if (view.size() != size)
        throw py::value_error(std::string(name) + ": " + std::to_string(view.size()) + " items, must be " +
                              std::to_string(size));
    return {view.data<T>(), view.data<T>() + size};
}

size_t count(const py::dict& from, const char* name) { return from[name].cast<size_t>(); }

void read_sizes(const py::dict& from, Instance& to) {
    const size_t n = to.workers, kinds = to.kinds, sizes = count(from, "sizes");
    const auto stage = values<double>(from, "stage", sizes * n), layer = values<double>(from, "layer", sizes * n * kinds);
    const auto output = values<double>(from, "output", sizes * n), frames = values<double>(from, "frames", sizes * 3);
    for (size_t s = 0; s < sizes; ++s)
        to.sizes.push_back({{&stage[s * n], &stage[s * n] + n},
                            {&layer[s * n * kinds], &layer[s * n * kinds] + n * kinds},
                            {&output[s * n], &output[s * n] + n},
                            frames[s * 3], frames[s * 3 + 1], frames[s * 3 + 2]});
}

void read_points(const py::dict& from, Instance& to) {
    const size_t points = count(from, "points");
    const auto size = values<int32_t>(from, "point_size", points);
    const auto in_flight = values<double>(from, "in_flight", points), gain = values<double>(from, "gain", points);
    for (size_t q = 0; q < points; ++q) {
        if (size[q] < 0 || size_t(size[q]) >= to.sizes.size()) throw py::value_error("point_size: no such size");
        to.points.push_back({size[q], in_flight[q], gain[q]});
    }
    to.kv_bytes = values<double>(from, "kv_bytes", points * to.kinds);
}

void read_model(const py::dict& from, Instance& to) {
    to.kind_of = values<int32_t>(from, "kind_of", to.layers);
    for (const int32_t kind : to.kind_of)
        if (kind < 0 || kind >= to.kinds) throw py::value_error("kind_of: no such kind");
    to.layer_bytes = values<double>(from, "layer_bytes", to.kinds);
    to.embedding_bytes = from["embedding_bytes"].cast<double>();
    to.output_bytes = from["output_bytes"].cast<double>();
    to.tied_bytes = from["tied_bytes"].cast<double>();
    to.scratch_bytes = from["scratch_bytes"].cast<double>();
    to.output_scratch_bytes = from["output_scratch_bytes"].cast<double>();
    to.loading_bytes = from["loading_bytes"].cast<double>();
    to.streaming_bytes = from["streaming_bytes"].cast<double>();
}

void read_topology(const py::dict& from, Instance& to) {
    const size_t n = to.workers, all = n + 1;
    to.limit = values<double>(from, "limit", n);
    to.stream = values<double>(from, "stream", n);
    to.fractions = values<double>(from, "fractions", count(from, "num_fractions"));
    to.bandwidth = values<double>(from, "bandwidth", all * all);
    to.latency = values<double>(from, "latency", all * all);
    to.ratios = values<double>(from, "ratios", count(from, "num_ratios"));
    to.encode = values<double>(from, "encode", n);
    to.decode = values<double>(from, "decode", n);
    to.rank = values<int32_t>(from, "rank", count(from, "ordered") ? n : 0);
    to.cores = from["cores"].cast<int>();
    to.hop_cpu = from["hop_cpu"].cast<double>();
    to.is_computing = from["is_computing"].cast<bool>();
    const size_t lines = count(from, "num_lines");
    if (lines == 0) return;
    for (const double rate : values<double>(from, "lines", lines)) to.lines.push_back({rate});
    to.up = values<int32_t>(from, "up", all);
    to.down = values<int32_t>(from, "down", all);
    for (const auto* ends : {&to.up, &to.down})
        for (const int32_t line : *ends)
            if (line < -1 || line >= int32_t(lines)) throw py::value_error("up, down: no such line");
}

Instance read(const py::dict& from) {
    Instance to;
    to.workers = from["workers"].cast<int>();
    to.layers = from["layers"].cast<int>();
    to.kinds = from["kinds"].cast<int>();
    if (to.workers < 1 || to.workers > plan::most_workers || to.layers < 1 || to.layers > plan::most_layers || to.kinds < 1)
        throw py::value_error("workers, layers, kinds: out of range");
    read_sizes(from, to);
    read_points(from, to);
    read_model(from, to);
    read_topology(from, to);
    if (to.points.empty() || to.fractions.empty() || to.ratios.empty()) throw py::value_error("nothing to choose from");
    return to;
}

std::vector<bool> allowed_of(const py::buffer& allowed, const Solver& solver) {
    const BufferView view = BufferView::array<uint8_t>(allowed, "allowed");
    if (view.size() != size_t(solver.instance().workers)) throw py::value_error("allowed: must have one item a worker");
    std::vector<bool> some(view.size());
    for (size_t w = 0; w < some.size(); ++w) some[w] = view.data()[w] != 0;
    return some;
}

py::dict to_dict(const Solution& solution) {
    using namespace py::literals;
    const Chain& chain = solution.chain;
    return py::dict("found"_a = solution.found, "point"_a = solution.point, "value"_a = solution.value,
                    "bound"_a = solution.bound, "proven"_a = solution.proven, "workers"_a = chain.workers, "layers"_a = chain.layers, "streamed"_a = chain.streamed,
                    "codec"_a = chain.codec);
}

using Search = Solution (Solver::*)(double, const std::vector<bool>&, int, double);

template <Search search>
py::dict run(Solver& solver, double limit, const py::buffer& allowed, int width, double share) {
    const std::vector<bool> some = allowed_of(allowed, solver);
    if (width < 1 || !(share > 0 && share <= 1)) throw py::value_error("width: must be >= 1, share in (0, 1]");
    Solution solution;
    {
        py::gil_scoped_release release;
        solution = (solver.*search)(limit, some, width, share);
    }
    return to_dict(solution);
}

double value_of(Solver& solver, int point, std::vector<int> workers, std::vector<int> layers, std::vector<int> streamed,
                std::vector<int> codec) {
    const Instance& instance = solver.instance();
    const auto within = [](const std::vector<int>& items, size_t below) {
        return std::all_of(items.begin(), items.end(), [below](int item) { return item >= 0 && size_t(item) < below; });
    };
    const size_t stages = workers.size();
    int sum = 0;
    for (const int k : layers) sum += k;
    if (stages == 0 || layers.size() != stages || streamed.size() != stages || codec.size() + 1 != stages ||
        !within(workers, instance.workers) || !within(layers, instance.layers + 1) || sum != instance.layers ||
        !within(streamed, instance.fractions.size()) || !within(codec, instance.ratios.size()) ||
        !within({point}, instance.points.size()))
        throw py::value_error("no chain of this instance");
    return solver.value_of(point, {std::move(workers), std::move(layers), std::move(streamed), std::move(codec)});
}

void check_point(const Solver& solver, int point) {
    if (point < 0 || size_t(point) >= solver.instance().points.size()) throw py::value_error("point: no such point");
}

std::vector<int> room(Solver& solver, int point) {
    check_point(solver, point);
    return solver.room(point);
}

double short_bytes(Solver& solver, int point, int worker, int start, int stop) {
    check_point(solver, point);
    const Instance& instance = solver.instance();
    if (worker < 0 || worker >= instance.workers || start < 0 || start >= stop || stop > instance.layers)
        throw py::value_error("no such span");
    return solver.short_bytes(point, worker, start, stop);
}

}  // namespace

void bind_plan(py::module_& m) {
    py::class_<Solver>(m, "PlanSolver")
        .def(py::init([](const py::dict& instance, double seconds, int64_t steps) {
                 return std::make_unique<Solver>(read(instance), plan::Budget(seconds, steps));
             }),
             py::arg("instance"), py::arg("seconds"), py::arg("steps"))
        .def("most_tokens", &run<&Solver::most_tokens>, py::arg("step_limit"), py::arg("allowed"), py::arg("width"),
             py::arg("share") = 1.0)
        .def("least_alone", &run<&Solver::least_alone>, py::arg("value"), py::arg("allowed"), py::arg("width"),
             py::arg("share") = 1.0)
        .def("value_of", &value_of, py::arg("point"), py::arg("workers"), py::arg("layers"), py::arg("streamed"),
             py::arg("codec"))
        .def("room", &room, py::arg("point"))
        .def("short_bytes", &short_bytes, py::arg("point"), py::arg("worker"), py::arg("start"), py::arg("stop"))
        .def("layer_rates", &Solver::layer_rates)
        .def_property_readonly("left", &Solver::left)
        .def_property_readonly("steps", &Solver::steps);
}

}  // namespace bloombee
