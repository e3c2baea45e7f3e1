#include "core/isa.h"

#include <pybind11/stl.h>

#include <vector>

#include "bindings/bindings.h"

namespace bloombee {
namespace {

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int level = 0; level <= static_cast<int>(best_isa()); ++level)
        names.emplace_back(isa_name(static_cast<Isa>(level)));
    return names;
}

std::string set_isa_by_name(const std::string& name) {
    for (int level = 0; level <= static_cast<int>(best_isa()); ++level)
        if (name == isa_name(static_cast<Isa>(level))) return isa_name(set_isa(static_cast<Isa>(level)));
    throw py::value_error("isa '" + name + "': not one of available_isas()");
}

}  // namespace

void bind_isa(py::module_& m) {
    m.def("available_isas", &available_isas);
    m.def("current_isa", [] { return isa_name(current_isa()); });
    m.def("set_isa", &set_isa_by_name, py::arg("name"));
}

}  // namespace bloombee
