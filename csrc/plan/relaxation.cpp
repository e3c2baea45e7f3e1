#include "plan/relaxation.h"

#include <algorithm>
#include <numeric>

#include "plan/least.h"

namespace bloombee::plan {

Relaxation::Relaxation(const PathProblem& problem)
    : problem_(problem), n_(problem.workers), layers_(problem.layers), enter_(size_t(layers_) * n_, never),
      leave_(size_t(n_) * (layers_ + 1), never), prices_(n_, 0.0), row_(n_), dead_(enter_.size(), 0), order_(n_) {
    std::iota(order_.begin(), order_.end(), 0);
    for (int u = 0; u < n_; ++u) {
        double least = never;
        for (int v = 0; v < n_; ++v) least = std::min(least, problem.hop_of(u, v));
        if (least < never) linked_.push_back(u);
        shortest_ = std::min(shortest_, least);
    }
}

// What is left from the moment before each worker gets layers [i, ...).
void Relaxation::enter_all(int i) {
    for (int v = 0; v < n_; ++v) {
        if (dead_[size_t(i) * n_ + v]) continue;  // (inf it is, and stays)
        const double* rest = &leave_[size_t(v) * (layers_ + 1) + i];
        const double* span = problem_.spans.from(v, i);
        const double end = problem_.spans.to_end(v, i) + rest[layers_ - i];
        const int longest = problem_.spans.longest(v, i);
        enter_[size_t(i) * n_ + v] = least_sum(span + 1, rest + 1, longest, end) + prices_[v];
    }
}

// The cheapest ways on come first; when none of the rest can be better for anyone, they are left out.
void Relaxation::leave_all(int i) {
    std::fill(row_.begin(), row_.end(), never);
    sort_by_rest(i);
    double* const row = row_.data();
    double worst = never;
    for (int turn = 0; turn < n_; ++turn) {
        const int v = order_[turn];
        const double rest = enter(i, v);
        if (turn % 8 == 0) worst = longest_left();
        if (rest == never || rest + shortest_ >= worst) break;
        const double* hop = &problem_.hop_into[size_t(v) * n_];
        for (int u = 0; u < n_; ++u) {
            const double cost = hop[u] + rest;
            row[u] = cost < row[u] ? cost : row[u];
        }
    }
    for (int u = 0; u < n_; ++u) leave_[size_t(u) * (layers_ + 1) + i] = row[u];
}

// Their order changes little from one number of layers to the next.
void Relaxation::sort_by_rest(int i) {
    const double* rest = &enter_[size_t(i) * n_];
    for (int a = 1; a < n_; ++a) {
        const int v = order_[a];
        int b = a;
        for (; b > 0 && rest[order_[b - 1]] > rest[v]; --b) order_[b] = order_[b - 1];
        order_[b] = v;
    }
}

// Of those that have links.
double Relaxation::longest_left() const {
    double worst = 0;
    for (const int u : linked_) worst = std::max(worst, row_[u]);
    return worst;
}

double Relaxation::solve(const std::vector<double>& prices) {
    prices_ = prices;
    total_ = 0;
    for (int v = 0; v < n_; ++v) {
        total_ += prices[v];
        leave_[size_t(v) * (layers_ + 1) + layers_] = problem_.home[v];
    }
    for (int i = layers_ - 1; i >= 0; --i) {
        enter_all(i);
        if (i > 0) leave_all(i);
    }
    double best = never;
    for (int v = 0; v < n_; ++v) best = std::min(best, problem_.first[v] + enter_[v]);
    return best - total_;
}

Path Relaxation::walk() const {
    Path path;
    int i = 0, last = -1;
    path.cost = 0;
    while (i < layers_) {
        int next = 0;
        double best = never;
        for (int v = 0; v < n_; ++v) {
            const double cost = (last < 0 ? problem_.first[v] : problem_.hop_of(last, v)) + enter(i, v);
            if (cost < best) best = cost, next = v;
        }
        if (best == never) return {};
        const int left = layers_ - i, longest = problem_.spans.longest(next, i);
        int count = left;
        double span = problem_.spans.to_end(next, i) + leave(layers_, next);
        for (int k = 1; k <= longest; ++k) {
            const double cost = problem_.spans.from(next, i)[k] + leave(i + k, next);
            if (cost < span) span = cost, count = k;
        }
        path.cost += last < 0 ? problem_.first[next] : problem_.hop_of(last, next);
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
    std::vector<double> done(size_t(layers_) * n_, never), best(n_, never), into(n_);
    for (int i = 0; i < layers_; ++i) {
        if (i == 0) {
            into = problem_.first;
        } else {
            std::fill(into.begin(), into.end(), never);
            for (int u = 0; u < n_; ++u) {
                const double so_far = done[size_t(i) * n_ + u];
                if (so_far == never) continue;
                const double* hop = &problem_.hop[size_t(u) * n_];
                for (int v = 0; v < n_; ++v) into[v] = std::min(into[v], so_far + hop[v]);
            }
        }
        for (int v = 0; v < n_; ++v) {
            const double all = into[v] + enter(i, v);
            if (!(all - total_ < limit)) {
                dead_[size_t(i) * n_ + v] = 1;
                enter_[size_t(i) * n_ + v] = never;
                continue;
            }
            best[v] = std::min(best[v], all);
            const double* span = problem_.spans.from(v, i);
            const int longest = problem_.spans.longest(v, i);
            for (int k = 1; k <= longest; ++k) {
                double& cost = done[size_t(i + k) * n_ + v];
                cost = std::min(cost, into[v] + prices_[v] + span[k]);
            }
        }
    }
    for (double& cost : best) cost -= total_;
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
