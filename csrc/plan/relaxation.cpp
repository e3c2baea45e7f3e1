#include "plan/relaxation.h"

#include <algorithm>
#include <numeric>

#include "plan/rows.h"

namespace bloombee::plan {
namespace {

// Of each column; 0 where there is nothing.
std::vector<double> least_of(const std::vector<double>& table, int n) {
    std::vector<double> least(n, never);
    for (const double* row = table.data(); row < table.data() + table.size(); row += n)
        for (int u = 0; u < n; ++u) least[u] = row[u] < least[u] ? row[u] : least[u];
    std::replace(least.begin(), least.end(), never, 0.0);
    return least;
}

}  // namespace

Relaxation::Relaxation(const PathProblem& problem)
    : problem_(problem), n_(problem.workers), layers_(problem.layers), rows_(problem.spans.rows),
      span_(size_t(rows_) * (layers_ + 1) * n_), tail_(size_t(layers_) * n_), longest_(rows_),
      enter_(size_t(layers_) * n_, never), leave_(enter_), dead_(enter_.size(), 0.0), most_out_(n_, -never),
      most_in_(n_, -never), order_(n_) {
    std::iota(order_.begin(), order_.end(), 0);
    read_spans();
    for (int u = 0; u < n_; ++u)
        for (int v = 0; v < n_; ++v)
            if (problem_.hop_into[size_t(v) * n_ + u] < never) most_out_[u] = most_in_[v] = never;
}

void Relaxation::read_spans() {
    for (int w = 0; w < n_; ++w) {
        for (int i = 0; i < rows_; ++i) {
            longest_[i] = std::max(longest_[i], problem_.spans.reach[problem_.spans.row(w, i)]);
            const double* span = problem_.spans.from(w, i);
            double* to = &span_[size_t(i) * (layers_ + 1) * n_ + w];
            for (int k = 0; k <= layers_; ++k) to[size_t(k) * n_] = span[k];
        }
        for (int i = 0; i < layers_; ++i) tail_[size_t(i) * n_ + w] = problem_.spans.to_end(w, i);
    }
}

// What is left from the moment before each worker gets layers [i, ...).
void Relaxation::enter_all(int i) {
    double* out = &enter_[size_t(i) * n_];
    const double* dead = &dead_[size_t(i) * n_];
    const double* tail = &tail_[size_t(i) * n_];
    for (int v = 0; v < n_; ++v) out[v] = tail[v] + problem_.home[v];
    const int count = longest(i);
    if (count > 0) row_kernels().spans(out, span_row(i) + n_, &leave_[size_t(i + 1) * n_], count, n_);
    for (int v = 0; v < n_; ++v) out[v] += dead[v];
}

double Relaxation::solve() {
    const std::vector<double> shortest = least_of(problem_.hop_into, n_);
    for (int i = layers_ - 1; i >= 0; --i) {
        enter_all(i);
        if (i == 0) break;
        const double* rest = &enter_[size_t(i) * n_];
        double* out = &leave_[size_t(i) * n_];
        std::fill(out, out + n_, never);
        row_kernels().hops(out, problem_.hop_into.data(), rest, order_.data(), shortest.data(), most_out_.data(), n_);
    }
    double best = never;
    for (int v = 0; v < n_; ++v) best = std::min(best, problem_.first[v] + enter_[v]);
    return best;
}

Path Relaxation::walk() const {
    Path path;
    int i = 0, last = -1;
    path.cost = 0;
    while (i < layers_) {
        int next = 0;
        double best = never;
        for (int v = 0; v < n_; ++v) {
            const double hop = last < 0 ? problem_.first[v] : problem_.hop_into[size_t(v) * n_ + last];
            if (const double cost = hop + enter(i, v); cost < best) best = cost, next = v;
        }
        if (best == never) return {};
        const int left = layers_ - i, most = problem_.spans.longest(next, i);
        int count = left;
        double span = problem_.spans.to_end(next, i) + leave(layers_, next);
        for (int k = 1; k <= most; ++k) {
            const double cost = problem_.spans.from(next, i)[k] + leave(i + k, next);
            if (cost < span) span = cost, count = k;
        }
        path.cost += last < 0 ? problem_.first[next] : problem_.hop_into[size_t(next) * n_ + last];
        path.cost += count == left ? problem_.spans.to_end(next, i) : problem_.spans.from(next, i)[count];
        path.workers.push_back(next);
        path.layers.push_back(count);
        i += count;
        last = next;
    }
    path.cost += problem_.home[last];
    return path;
}

std::vector<double> Relaxation::through(double limit) {
    std::vector<double> done(size_t(layers_) * n_, never), best(n_, never), into = problem_.first;
    const std::vector<double> shortest = least_of(problem_.hop, n_);
    for (int i = 0; i < layers_; ++i) {
        if (i > 0) {
            const double* so_far = &done[size_t(i) * n_];
            std::fill(into.begin(), into.end(), never);
            row_kernels().hops(into.data(), problem_.hop.data(), so_far, order_.data(), shortest.data(), most_in_.data(), n_);
        }
        for (int v = 0; v < n_; ++v) {
            const double all = into[v] + enter(i, v);
            best[v] = std::min(best[v], all);
            if (all < limit) continue;
            dead_[size_t(i) * n_ + v] = enter_[size_t(i) * n_ + v] = never;
            into[v] = never;  // (what it leads to is no better)
        }
        for (int k = 1; k <= longest(i); ++k) {
            const double* span = span_row(i) + size_t(k) * n_;
            double* out = &done[size_t(i + k) * n_];
            for (int v = 0; v < n_; ++v) out[v] = std::min(out[v], into[v] + span[v]);
        }
    }
    return best;
}

Relaxation Relaxation::only(const PathProblem& part, const std::vector<int>& chosen) const {
    Relaxation other(part);
    for (int i = 0; i < layers_; ++i)
        for (size_t a = 0; a < chosen.size(); ++a)
            other.dead_[size_t(i) * chosen.size() + a] = dead_[size_t(i) * n_ + chosen[a]];
    return other;
}

}  // namespace bloombee::plan
