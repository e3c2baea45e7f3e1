// Which sets of workers a path can have, where layers are alike and workers are few.
//
// For a set of workers it does not matter who stands where when layers are given out, apart from what the first and the last
// one have besides, so a bound falls into two parts: the shortest way through all of the set (Held and Karp 1962), and the
// layers, each given to the worker that takes the least more for it (times made convex from below: exact where they are linear).
#pragma once

#include <cstdint>
#include <vector>

#include "plan/path.h"

namespace bloombee::plan {

constexpr int most_in_subsets = 16;

struct Subset {
    double bound;      // of a path with exactly these workers
    uint32_t members;  // as bits
};

// All that may have a path below `below`, the least bound first; nothing else has one. At most `most_in_subsets` workers, alike
// layers.
std::vector<Subset> subsets_below(const PathProblem& problem, double below);

// The order of the best path with exactly these workers (two or more) that costs less than `below`; empty: there is none.
std::vector<int> best_order(const PathProblem& problem, uint32_t members, double below);

}  // namespace bloombee::plan
