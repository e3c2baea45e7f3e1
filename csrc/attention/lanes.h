// The kernels' code run on the host, lane by lane, for tests: all pointers of the tasks are the host's.
#pragma once

#include "attention/layout.h"

namespace bloombee::attention {

// False: no kernel is made for the task's dtype or widths.
bool attend_by_lanes(const Task& task);

void write_by_lanes(const WriteTask& task);

}  // namespace bloombee::attention
