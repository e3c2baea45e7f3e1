#include "bindings/bindings.h"

PYBIND11_MODULE(_native, m, pybind11::mod_gil_not_used()) {
    m.doc() = "Native parts of bloombee; the signatures are in _native.pyi.";
    bloombee::bind_isa(m);
    bloombee::bind_planes(m);
    bloombee::bind_checksum(m);
    bloombee::bind_codec(m);
    bloombee::bind_sampler(m);
    bloombee::bind_plan(m);
    bloombee::bind_fused(m);
    bloombee::bind_attention(m);
}
