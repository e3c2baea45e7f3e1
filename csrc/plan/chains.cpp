#include "plan/chains.h"

#include <algorithm>

#include "plan/draw.h"
#include "plan/least.h"
#include "plan/relaxation.h"

namespace bloombee::plan {
namespace {

// Tried in each place.
constexpr size_t most_candidates = 10;

}  // namespace

Chains::Chains(const PathProblem& problem, double worth)
    : problem_(problem), layers_(problem.layers), penalty_(worth / problem.layers * 4 + 1e-9), row_(layers_ + 1),
      other_(layers_ + 1) {}

// Worker w takes layers from i on, then `rest` by layers given out; null: it is the last.
double Chains::enter(int w, int i, const double* rest, double hop) const {
    const double* span = problem_.spans.from(w, i);
    const int longest = problem_.spans.longest(w, i);
    if (rest) return least_sum(span + 1, rest + i + 1, longest, never) + hop;
    double best = never;
    for (int k = 1; k <= longest; ++k) best = std::min(best, span[k] + penalty_ * (layers_ - i - k));
    return std::min(best, problem_.spans.to_end(w, i)) + problem_.home[w];
}

double Chains::cost(const std::vector<int>& order) {
    const double* rest = nullptr;
    double hop = 0;
    for (int p = int(order.size()) - 1; p >= 0; --p) {
        for (int i = p; i < layers_; ++i) row_[i] = enter(order[p], i, rest, hop);
        row_[layers_] = never;
        std::swap(row_, other_);
        rest = other_.data();
        hop = hop_into(order, p, order[p]);
    }
    return hop + other_[0];
}

void Chains::prepare(const std::vector<int>& order) {
    const int n = int(order.size());
    order_ = order;
    before_.assign(n + 1, std::vector<double>(layers_ + 1, never));
    least_after_ = after_ = before_;
    before_[0][0] = 0;
    for (int p = 0; p < n; ++p) {
        const int w = order[p];
        const double hop = hop_into(order, p, w);
        for (int i = 0; i < layers_; ++i) {
            if (before_[p][i] == never) continue;
            const double* span = problem_.spans.from(w, i);
            const int longest = problem_.spans.longest(w, i);
            for (int k = 1; k <= longest; ++k)
                before_[p + 1][i + k] = std::min(before_[p + 1][i + k], before_[p][i] + hop + span[k]);
        }
    }
    for (int p = n - 1; p >= 0; --p) {
        const double* rest = p + 1 < n ? after_[p + 1].data() : nullptr;
        const double hop = p + 1 < n ? hop_into(order, p + 1, order[p + 1]) : 0.0;
        for (int i = layers_ - 1; i >= 0; --i) {
            after_[p][i] = enter(order[p], i, rest, hop);
            least_after_[p][i] = std::min(after_[p][i], least_after_[p][i + 1]);
        }
    }
}

// With w after the first p stages, and stage `next` after it; `most` if that is no better.
double Chains::between(int p, int next, int w, double most) const {
    const int n = int(order_.size());
    const double in = hop_into(order_, p, w);
    const double* rest = next < n ? after_[next].data() : nullptr;
    const double hop = next < n ? problem_.hop_of(w, order_[next]) : 0.0;
    if (in == never || hop == never) return never;
    double best = most;
    for (int i = 0; i < layers_; ++i) {
        const double so_far = before_[p][i] + in;
        if (!(so_far < best)) continue;
        if (rest && so_far + problem_.spans.from(w, i)[1] + hop + least_after_[next][i + 1] >= best) continue;
        best = std::min(best, so_far + enter(w, i, rest, hop));
    }
    return best;
}

// Those that seem best between the first p stages and stage `next`: by their links, and their time for as many layers as others
// have.
std::vector<int> Chains::candidates(int p, int next, const std::vector<bool>& used) const {
    const int n = int(order_.size()), fair = std::max(1, layers_ / n);
    std::vector<std::pair<double, int>> scores;
    for (int w = 0; w < problem_.workers; ++w) {
        const int k = std::min(fair, problem_.spans.reach[problem_.spans.row(w, 1)]);
        if (used[w] || k == 0) continue;
        const double links = hop_into(order_, p, w) + (next < n ? problem_.hop_of(w, order_[next]) : problem_.home[w]);
        scores.push_back({links + problem_.spans.from(w, 1)[k] / k * fair, w});
    }
    const size_t most = std::min(scores.size(), most_candidates);
    std::partial_sort(scores.begin(), scores.begin() + long(most), scores.end());
    std::vector<int> chosen;
    for (size_t a = 0; a < most; ++a) chosen.push_back(scores[a].second);
    return chosen;
}

// The best way to insert, replace or remove one worker, if it helps.
bool Chains::step_by_one(std::vector<int>& order, double& now) {
    prepare(order);
    const int n = int(order.size());
    std::vector<bool> used(problem_.workers, false);
    for (const int w : order) used[w] = true;
    double best = now * (1 - 1e-12);
    int at = -1, next = 0, worker = -1;
    for (int p = 0; p <= n; ++p)
        for (int to = p; to <= std::min(n, p + 1); ++to)
            for (const int w : candidates(p, to, used))
                if (const double cost = between(p, to, w, best); cost < best) best = cost, at = p, next = to, worker = w;
    for (int p = 0; p + 1 < n; ++p) {
        const double hop = hop_into(order, p, order[p + 1]);
        for (int i = 0; i < layers_; ++i)
            if (const double cost = before_[p][i] + hop + after_[p + 1][i]; cost < best)
                best = cost, at = p, next = p + 1, worker = -1;
    }
    if (at < 0) return false;
    order.erase(order.begin() + at, order.begin() + next);
    if (worker >= 0) order.insert(order.begin() + at, worker);
    now = best;
    return true;
}

double Chains::hops(const std::vector<int>& order) const {
    double sum = problem_.first[order.front()] + problem_.home[order.back()];
    for (size_t p = 1; p < order.size(); ++p) sum += problem_.hop_of(order[p - 1], order[p]);
    return sum;
}

// `other` has the same workers: where layers are alike, only its links can be better, apart from who is first and last.
bool Chains::keep(std::vector<int>& order, const std::vector<int>& other, double& now) {
    const bool same_ends = other.front() == order.front() && other.back() == order.back();
    if (same_ends && problem_.spans.rows == 2 && hops(other) >= hops(order)) return false;
    const double then = cost(other);
    if (!(then < now * (1 - 1e-12))) return false;
    order = other;
    now = then;
    return true;
}

// The first swap, reversal or move of one worker that helps.
bool Chains::step_by_order(std::vector<int>& order, double& now) {
    const int n = int(order.size());
    std::vector<int> other;
    for (int a = 0; a < n; ++a)
        for (int b = 0; b < n; ++b) {
            if (a < b) {
                other = order;
                std::swap(other[a], other[b]);
                if (keep(order, other, now)) return true;
                if (b > a + 1) {
                    other = order;
                    std::reverse(other.begin() + a, other.begin() + b + 1);
                    if (keep(order, other, now)) return true;
                }
            }
            if (b > a + 1 || b < a - 1) {
                other = order;
                other.erase(other.begin() + a);
                other.insert(other.begin() + b, order[a]);
                if (keep(order, other, now)) return true;
            }
        }
    return false;
}

double Chains::descend(std::vector<int>& order, Budget& budget) {
    double now = cost(order);
    do {
        budget.spend(int64_t(problem_.workers) * layers_);
        if (budget.is_spent()) break;
    } while (step_by_one(order, now) || step_by_order(order, now));
    return now;
}

// Takes a few out, and puts others in.
void Chains::shake(std::vector<int>& order, uint64_t& state) const {
    const int changes = 2 + int(draw(state) % 3);
    for (int turn = 0; turn < changes; ++turn) {
        const int w = int(draw(state) % problem_.workers), p = int(draw(state) % order.size());
        const auto found = std::find(order.begin(), order.end(), w);
        if (found == order.end()) {
            order[p] = w;
        } else if (order.size() > 1) {
            order.erase(found);
        }
    }
}

Path Chains::path(const std::vector<int>& order) {
    PathProblem part = problem_.only(order);
    for (int a = 0; a < part.workers; ++a)
        for (int b = 0; b < part.workers; ++b)
            if (b != a + 1) part.set_hop(a, b, never);
    Relaxation relaxation(part);
    if (relaxation.solve() == never) return {};
    Path path = relaxation.walk();
    for (int& w : path.workers) w = order[w];
    return path;
}

Path Chains::improve(std::vector<int> order, int turns, uint64_t seed, Budget& budget) {
    std::vector<int> best = order;
    double least = descend(best, budget);
    for (int turn = 1; turn < turns && !budget.is_spent(); ++turn) {
        order = best;
        shake(order, seed);
        if (const double now = descend(order, budget); now < least) least = now, best = order;
    }
    return path(best);
}

}  // namespace bloombee::plan
