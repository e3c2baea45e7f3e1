// Which workers are near each other.
#pragma once

#include <vector>

#include "plan/path.h"

namespace bloombee::plan {

// Sets of two or more workers, not of all, that come about when the nearest ones are joined again and again (single linkage, by
// the shorter hop of each two).
std::vector<std::vector<int>> clusters_of(const PathProblem& problem);

}  // namespace bloombee::plan
