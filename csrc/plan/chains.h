// Local search over the order of a path's workers: insert, replace, remove, swap, move, reverse. For each order the layers are
// given out as well as can be, by the dynamic program of a fixed order; what an order is short of layers costs a penalty.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/path.h"

namespace bloombee::plan {

class Chains {
  public:
    // `worth`: about what a whole path costs.
    Chains(const PathProblem& problem, double worth);

    // The best that `turns` rounds find: each goes down from the best order so far, with some of it changed at random by `seed`.
    Path improve(std::vector<int> order, int turns, uint64_t seed, Budget& budget);

  private:
    double cost(const std::vector<int>& order);
    void prepare(const std::vector<int>& order);
    double descend(std::vector<int>& order, Budget& budget);
    bool step_by_one(std::vector<int>& order, double& now);
    bool step_by_order(std::vector<int>& order, double& now);
    bool keep(std::vector<int>& order, const std::vector<int>& other, double& now);
    double hops(const std::vector<int>& order) const;
    std::vector<int> candidates(int p, int next, const std::vector<bool>& used) const;
    double between(int p, int next, int w, double most) const;
    double enter(int w, int i, const double* rest, double hop) const;
    double hop_into(const std::vector<int>& order, int p, int w) const { return p == 0 ? problem_.first[w] : problem_.hop_of(order[p - 1], w); }
    void shake(std::vector<int>& order, uint64_t& state) const;
    Path path(const std::vector<int>& order);

    const PathProblem& problem_;
    int layers_;
    double penalty_;
    std::vector<int> order_;              // that before_ and after_ are of
    std::vector<std::vector<double>> before_, after_;  // [stages + 1, layers + 1] cost so far; cost from entering a stage on
    std::vector<std::vector<double>> least_after_;     // [stages + 1, layers + 1] of after_ from there on
    std::vector<double> row_, other_;
};

}  // namespace bloombee::plan
