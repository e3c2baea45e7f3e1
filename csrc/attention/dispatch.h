// From a task's widths to the code that was made for them.
#pragma once

#include "attention/warp.h"

namespace bloombee::attention {

// Rows of heads are whole numbers of 16 bytes, and not too many.
inline bool is_covered(const Task& task) {
    const int bytes = task.dtype == float32 ? 4 : 2;
    return task.dtype >= bfloat16 && task.dtype <= float32 && task.key_dim * bytes % 16 == 0 &&
           task.value_dim * bytes % 16 == 0 && task.key_dim <= most_dim && task.value_dim <= most_dim;
}

// run.operator()<dim>(), with the least dim that is made and wide enough.
template <class Run>
auto by_width(const Task& task, Run run) {
    const int widest = task.key_dim > task.value_dim ? task.key_dim : task.value_dim;
    if (widest <= 64) return run.template operator()<64>();
    if (widest <= 128) return run.template operator()<128>();
    return run.template operator()<most_dim>();
}

}  // namespace bloombee::attention
