#include "plan/subsets.h"

#include <algorithm>
#include <bit>

#include "plan/least.h"

namespace bloombee::plan {
namespace {

// So many layers of one worker that take `slope` each.
struct Piece {
    double slope;
    int count, worker;
};

// Times of 1, 2, ... layers in the middle, as far as they fit: the lower convex hull of them.
struct Hull {
    Hull(const PathProblem& p, int w) {
        const double* span = p.spans.from(w, 1);
        const int reach = p.layers > 1 ? p.spans.reach[p.spans.row(w, 1)] : 0;
        if (reach == 0) return;
        at.assign(span, span + reach + 1);
        for (int a = 1; a < reach;) {
            int next = a + 1;
            for (int b = a + 1; b <= reach; ++b)
                if ((span[b] - span[a]) * (next - a) <= (span[next] - span[a]) * (b - a)) next = b;
            const double slope = (span[next] - span[a]) / (next - a);
            for (int b = a + 1; b < next; ++b) at[b] = span[a] + slope * (b - a);
            pieces.push_back({slope, next - a, w});
            a = next;
        }
    }
    int reach() const { return int(at.size()) - 1; }

    std::vector<double> at;  // by layers, from 1
    std::vector<Piece> pieces;
};

// What a first or last worker takes more than one in the middle, at least.
double least_more(const PathProblem& p, const Hull& hull, int w, bool first) {
    double least = never;
    for (int k = 1; k < p.layers && k <= hull.reach(); ++k) {
        const double own = first ? (k <= p.spans.longest(w, 0) ? p.spans.from(w, 0)[k] : never) : p.spans.to_end(w, p.layers - k);
        if (own < never) least = std::min(least, own - hull.at[k]);
    }
    return least;
}

class Table {
  public:
    explicit Table(const PathProblem& p) : p_(p), n_(p.workers), stride_((n_ + 3) / 4 * 4), way_(size_t(stride_) << n_, never), into_(size_t(n_) * stride_, never) {
        for (int v = 0; v < n_; ++v)
            for (int u = 0; u < n_; ++u) into_[size_t(v) * stride_ + u] = p.hop_of(u, v);
        for (int w = 0; w < n_; ++w) {
            hulls_.emplace_back(p, w);
            begin_.push_back(p.first[w] + least_more(p, hulls_[w], w, true));
            end_.push_back(p.home[w] + least_more(p, hulls_[w], w, false));
            pieces_.insert(pieces_.end(), hulls_[w].pieces.begin(), hulls_[w].pieces.end());
        }
        std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.slope < b.slope; });
    }

    std::vector<Subset> below(double limit) {
        std::vector<Subset> found;
        for (uint32_t members = 1; members < uint32_t{1} << n_; ++members) {
            const double way = through(members), layers = std::popcount(members) > 1 ? fill(members) : alone(members);
            if (way + layers < limit) found.push_back({way + layers, members});
        }
        std::sort(found.begin(), found.end(), [](const Subset& a, const Subset& b) {
            return a.bound != b.bound ? a.bound < b.bound : a.members < b.members;
        });
        return found;
    }

  private:
    // The shortest way through all of `members`, home included; fills the table's row.
    double through(uint32_t members) {
        double best = never;
        double* row = &way_[size_t(members) * stride_];
        for (uint32_t left = members; left; left &= left - 1) {
            const int last = std::countr_zero(left);
            const uint32_t before = members & ~(uint32_t{1} << last);
            double least = never;
            if (before == 0) {
                least = begin_[last];
                best = p_.first[last] + p_.home[last];
            } else {
                least = least_sum(&way_[size_t(before) * stride_], &into_[size_t(last) * stride_], stride_, never);
                best = std::min(best, least + end_[last]);
            }
            row[last] = least;
        }
        return best;
    }

    double alone(uint32_t members) const { return p_.spans.to_end(std::countr_zero(members), 0); }

    double fill(uint32_t members) const {
        int left = p_.layers - std::popcount(members);
        if (left < 0) return never;
        double sum = 0;
        for (uint32_t some = members; some; some &= some - 1) {
            const Hull& hull = hulls_[std::countr_zero(some)];
            if (hull.reach() < 1) return never;
            sum += hull.at[1];
        }
        for (const Piece& piece : pieces_) {
            if (!(members >> piece.worker & 1)) continue;
            const int count = std::min(left, piece.count);
            sum += count * piece.slope;
            if ((left -= count) == 0) return sum;
        }
        return left == 0 ? sum : never;
    }

    const PathProblem& p_;
    int n_, stride_;
    std::vector<double> way_;   // [subsets, stride] of ways that end there; inf outside of the subset
    std::vector<double> into_;  // [workers, stride] of hops into each
    std::vector<Hull> hulls_;
    std::vector<double> begin_, end_;
    std::vector<Piece> pieces_;
};

// Shortest ways from one worker through others, for all sets of them.
class Ways {
  public:
    Ways(const PathProblem& p, const std::vector<int>& workers)
        : p_(p), workers_(workers), m_(int(workers.size())), way_(size_t(m_) << m_) {}

    void from(int first) {
        std::fill(way_.begin(), way_.end(), never);
        way_[(size_t{1} << first) * m_ + first] = p_.first[workers_[first]];
        for (uint32_t some = 1; some < uint32_t{1} << m_; ++some) {
            if (!(some >> first & 1)) continue;
            for (int u = 0; u < m_; ++u) {
                const double so_far = at(some, u);
                if (so_far == never) continue;
                for (int v = 0; v < m_; ++v) {
                    if (some >> v & 1) continue;
                    double& then = way_[size_t(some | uint32_t{1} << v) * m_ + v];
                    then = std::min(then, so_far + p_.hop_of(workers_[u], workers_[v]));
                }
            }
        }
    }
    double through_all(int last) const { return at(all(), last); }
    std::vector<int> order(int last) const {
        std::vector<int> order;
        for (uint32_t some = all();;) {
            order.push_back(workers_[last]);
            const uint32_t before = some & ~(uint32_t{1} << last);
            if (before == 0) break;
            int best = 0;
            double least = never;
            for (int u = 0; u < m_; ++u)
                if (const double cost = at(before, u) + p_.hop_of(workers_[u], workers_[last]); cost < least) least = cost, best = u;
            last = best;
            some = before;
        }
        std::reverse(order.begin(), order.end());
        return order;
    }

  private:
    uint32_t all() const { return (uint32_t{1} << m_) - 1; }
    double at(uint32_t some, int u) const { return way_[size_t(some) * m_ + u]; }

    const PathProblem& p_;
    const std::vector<int>& workers_;
    int m_;
    std::vector<double> way_;  // [subsets, workers]
};

// Least time of all layers on `workers`, where they begin with `first` and end with `last`.
double least_layers(const PathProblem& p, const std::vector<int>& workers, int first, int last) {
    std::vector<double> least(p.layers + 1, never), next(p.layers + 1);
    for (int k = 1; k <= p.spans.longest(first, 0); ++k) least[k] = p.spans.from(first, 0)[k];
    for (const int w : workers) {
        if (w == first || w == last) continue;
        const double* span = p.spans.from(w, 1);
        std::fill(next.begin(), next.end(), never);
        for (int i = 1; i < p.layers; ++i) {
            if (least[i] == never) continue;
            for (int k = 1; k <= p.spans.longest(w, i); ++k) next[i + k] = std::min(next[i + k], least[i] + span[k]);
        }
        least.swap(next);
    }
    double best = never;
    for (int i = 1; i < p.layers; ++i) best = std::min(best, least[i] + p.spans.to_end(last, i));
    return best;
}

}  // namespace

std::vector<Subset> subsets_below(const PathProblem& problem, double below) { return Table(problem).below(below); }

std::vector<int> best_order(const PathProblem& p, uint32_t members, double below) {
    std::vector<int> workers, order;
    for (uint32_t some = members; some; some &= some - 1) workers.push_back(std::countr_zero(some));
    const int m = int(workers.size());
    std::vector<double> times(size_t(m) * m, never);
    double shortest = never;
    for (int a = 0; a < m; ++a)
        for (int b = 0; b < m; ++b)
            if (a != b) shortest = std::min(shortest, times[a * m + b] = least_layers(p, workers, workers[a], workers[b]));
    Ways ways(p, workers);
    for (int first = 0; first < m; ++first) {
        if (p.first[workers[first]] + shortest >= below) continue;
        ways.from(first);
        for (int last = 0; last < m; ++last) {
            const double cost = ways.through_all(last) + p.home[workers[last]] + times[first * m + last];
            if (!(cost < below)) continue;
            below = cost;
            order = ways.order(last);
        }
    }
    return order;
}

}  // namespace bloombee::plan
