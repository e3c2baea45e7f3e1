// The dynamic program behind the bounds of path.h: cheapest walks, that may return to a worker.
#pragma once

#include <vector>

#include "plan/path.h"

namespace bloombee::plan {

class Relaxation {
  public:
    // Reads the problem's links anew in each solve(), its spans once.
    explicit Relaxation(const PathProblem& problem);

    // Cheapest walk.
    double solve();
    // The walk found last.
    Path walk() const;
    // Cheapest walks through each worker. States - layers given out, and who comes next - that only walks of `limit` or more go
    // through are dead from then on: no walk of solve() has them.
    std::vector<double> through(double limit);
    // The same for a part of the workers, with what is dead already.
    Relaxation only(const PathProblem& part, const std::vector<int>& chosen) const;
    // The problem's spans are others now.
    void read_spans();

    // Rest of a walk: about to enter v with i layers given out; with u as the last worker so far.
    double enter(int i, int v) const { return enter_[size_t(i) * n_ + v]; }
    double leave(int i, int u) const { return i == layers_ ? problem_.home[u] : leave_[size_t(i) * n_ + u]; }
    int64_t steps() const { return int64_t(layers_) * n_ * n_ / 8 + 1; }

  private:
    const double* span_row(int i) const { return &span_[size_t(std::min(i, rows_ - 1)) * (layers_ + 1) * n_]; }
    int longest(int i) const { return std::min(longest_[std::min(i, rows_ - 1)], layers_ - i - 1); }
    void enter_all(int i);

    const PathProblem& problem_;
    int n_, layers_, rows_;
    std::vector<double> span_;       // [rows, layers + 1, workers]
    std::vector<double> tail_;       // [layers, workers]
    std::vector<int> longest_;       // [rows] of any worker
    std::vector<double> enter_;      // [layers, workers]
    std::vector<double> leave_;      // [layers, workers]
    std::vector<double> dead_;       // [layers, workers] inf, else 0
    std::vector<double> most_out_, most_in_;  // [workers] inf; -inf: no links
    std::vector<int> order_;
};

}  // namespace bloombee::plan
