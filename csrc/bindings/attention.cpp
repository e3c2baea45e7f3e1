#include "attention/lanes.h"
#include "bindings/attention_task.h"
#include "bindings/bindings.h"

namespace bloombee {
namespace {

void attend(const attention::Task& task, uintptr_t) {
    if (!attention::attend_by_lanes(task)) {
        throw py::value_error("no kernel is made for this dtype and these widths");
    }
}

void write(const attention::WriteTask& task, uintptr_t) { attention::write_by_lanes(task); }

}  // namespace

void bind_attention(py::module_& m) { attention::bind_attention<attend, write>(m); }

}  // namespace bloombee
