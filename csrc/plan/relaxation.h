// The dynamic program behind the bounds of path.h: cheapest walks, that may return to a worker, at a price for each visit.
#pragma once

#include <vector>

#include "plan/path.h"

namespace bloombee::plan {

class Relaxation {
  public:
    explicit Relaxation(const PathProblem& problem);

    // Cheapest walk with `prices` added for each visit; the sum of all prices taken off.
    double solve(const std::vector<double>& prices);
    // The walk found last.
    Path walk() const;
    // Cheapest walks through each worker, in the terms of solve(). States - layers given out, and who comes next - that only walks
    // of `limit` or more go through are dead from then on: no walk of solve() has them.
    std::vector<double> through(double limit);
    // The same for a part of the workers, with what is dead already.
    Relaxation only(const PathProblem& part, const std::vector<int>& chosen) const;

    // Rest of a walk: about to enter v with i layers given out; with u as the last worker so far.
    double enter(int i, int v) const { return enter_[size_t(i) * n_ + v]; }
    double leave(int i, int u) const { return leave_[size_t(u) * (layers_ + 1) + i]; }
    double total_price() const { return total_; }
    int64_t steps() const { return int64_t(layers_) * n_ * n_ / 8 + 1; }

  private:
    void enter_all(int i);
    void leave_all(int i);
    void sort_by_rest(int i);
    double longest_left() const;

    const PathProblem& problem_;
    int n_, layers_;
    std::vector<double> enter_;  // [layers, workers]
    std::vector<double> leave_;  // [workers, layers + 1]
    std::vector<double> prices_, row_;
    std::vector<uint8_t> dead_;    // [layers, workers]
    std::vector<int> order_, linked_;
    double total_ = 0, shortest_ = never;
};

}  // namespace bloombee::plan
