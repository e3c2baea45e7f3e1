#include "plan/path.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <optional>

#include "plan/chains.h"
#include "plan/labels.h"
#include "plan/relaxation.h"
#include "plan/subsets.h"

namespace bloombee::plan {
namespace {

constexpr int few_turns = 12, some_turns = 60, most_turns = 400;
constexpr int most_shakes = 3;
constexpr int most_promising = 48;

// Raises the price of a worker that a walk returns to, lowers that of one it leaves out; Polyak's step.
class Prices {
  public:
    Prices(std::vector<double> start) : now(std::move(start)), best(now) {}

    void record(double bound) {
        if (bound > highest) {
            if (bound > highest + 1e-4 * std::abs(highest)) failures = 0;
            highest = bound;
            best = now;
        } else if (++failures >= 8) {
            scale *= 0.6;
            failures = 0;
            now = best;
        }
    }

    // False where the walk is elementary and no price is left for a worker that it leaves out: it is the best path.
    bool move(const std::vector<int>& visits, double gap) {
        double norm = 0;
        for (size_t v = 0; v < now.size(); ++v)
            if (visits[v] > 1 || (visits[v] == 0 && now[v] > 0)) norm += (visits[v] - 1.0) * (visits[v] - 1.0);
        if (norm == 0) return false;
        const double step = scale * gap / norm;
        for (size_t v = 0; v < now.size(); ++v) now[v] = std::max(0.0, now[v] + step * (visits[v] - 1.0));
        return true;
    }

    std::vector<double> now, best;
    double highest = -never, scale = 1.0;
    int failures = 0;
};

std::vector<int> count_visits(const Path& walk, int workers) {
    std::vector<int> visits(workers, 0);
    for (const int w : walk.workers) ++visits[w];
    return visits;
}

// Fewer layers fit than there are, however they are given out.
bool is_too_small(const PathProblem& p) {
    int64_t fit = 0;
    for (int w = 0; w < p.workers; ++w) {
        int most = 0;
        for (int i = 0; i < p.layers; ++i) most = std::max(most, p.spans.any(w, i));
        fit += most;
    }
    return fit < p.layers;
}

// The best path that visits some of `order`, in that order.
Path along(const PathProblem& p, const std::vector<int>& order) {
    PathProblem part = p.only(order);
    for (int a = 0; a < part.workers; ++a)
        for (int b = 0; b < a; ++b) part.set_hop(a, b, never);
    Relaxation relaxation(part);
    if (relaxation.solve(std::vector<double>(part.workers, 0.0)) == never) return {};
    Path path = relaxation.walk();
    for (int& w : path.workers) w = order[w];
    return path;
}

std::vector<int> distinct(const std::vector<int>& walk, int workers) {
    std::vector<int> order;
    std::vector<bool> seen(workers, false);
    for (const int w : walk)
        if (!seen[w]) seen[w] = true, order.push_back(w);
    return order;
}

double least(double a, double b) { return a < b ? a : b; }

class Search {
  public:
    Search(const PathProblem& whole, double below, Budget& budget, const PathProblem* second, double limit)
        : below_(below), limit_(limit), budget_(budget), problem_(whole), ids_(whole.workers) {
        if (second) second_.emplace_back(*second);
        std::iota(ids_.begin(), ids_.end(), 0);
    }

    Found run(int width, std::vector<double>& prices) {
        if (is_too_small(problem_)) return {{}, never, true};
        const int turns = width == hasty ? few_turns : width > quick ? most_turns : some_turns;
        if (tighten(prices, turns) || bound_ >= ceiling()) return finish(true);
        if (width == bounds_only) return finish(false);
        look_around(width == hasty);
        if (bound_ >= ceiling()) return finish(true);
        if (width <= quick) return finish(false);
        const bool few = problem_.workers <= most_in_subsets && problem_.layers > 2 && problem_.spans.rows == 2;
        if (few) return finish(extend(8) || by_subsets(width));
        for (int wide = std::min(width, 32);; wide = std::min(width, wide * 8)) {
            if (extend(wide)) return finish(true);
            if (wide == width || budget_.is_spent()) return finish(false);
        }
    }

  private:
    double ceiling() const { return least(below_, best_.cost); }
    const PathProblem* second() const { return second_.empty() ? nullptr : &second_[0]; }

    // Bounds rise, workers that no better path visits are left out. True: the best path is found, or there is none.
    bool tighten(std::vector<double>& start, int turns) {
        Prices prices(start);
        int since = 0;
        double at_last_cut = -never;
        std::optional<Relaxation> now(problem_);
        for (int turn = 0; turn < turns; ++turn) {
            Relaxation& relaxation = *now;
            const double bound = relaxation.solve(prices.now);
            budget_.spend(relaxation.steps());
            prices.record(bound);
            bound_ = std::max(bound_, bound);
            if (bound >= ceiling() || bound == never) return keep(start, prices), true;
            const Path walk = relaxation.walk();
            const std::vector<int> visits = count_visits(walk, problem_.workers);
            offer(walk, visits);
            if (bound_ >= ceiling()) return keep(start, prices), true;
            const double aim = ceiling() < never ? ceiling() : walk.cost + std::abs(walk.cost) * 0.5 + 1e-9;
            if (!prices.move(visits, std::max(aim - bound, 1e-6 * std::abs(aim)))) {
                keep(start, prices);
                return second_.empty();  // then the walk is the best path; else it may be one that the second costs forbid
            }
            if (++since >= 8 && ceiling() < never && bound_ > at_last_cut) {
                since = 0;
                at_last_cut = bound_;
                cut(now, prices, start);
            }
            if (prices.scale < 0.02 || budget_.is_spent()) break;
        }
        keep(start, prices);
        return false;
    }

    void keep(std::vector<double>& start, const Prices& prices) {
        prices_ = prices.best;
        for (size_t v = 0; v < ids_.size(); ++v) start[ids_[v]] = prices_[v];
    }

    void cut(std::optional<Relaxation>& relaxation, Prices& prices, std::vector<double>& start) {
        const std::vector<double> through = relaxation->through(ceiling());
        std::vector<int> chosen;
        for (int v = 0; v < problem_.workers; ++v)
            if (through[v] < ceiling()) chosen.push_back(v);
        if (chosen.size() > 0.9 * problem_.workers || chosen.empty()) return;
        keep(start, prices);
        const auto pick = [&](auto& values) {
            auto some = values;
            some.resize(chosen.size());
            for (size_t a = 0; a < chosen.size(); ++a) some[a] = values[chosen[a]];
            values = some;
        };
        problem_ = problem_.only(chosen);
        Relaxation rest = relaxation->only(problem_, chosen);
        relaxation.emplace(std::move(rest));
        for (PathProblem& other : second_) other = other.only(chosen);
        pick(ids_);
        pick(prices.now);
        pick(prices.best);
        order_.clear();
    }

    // A walk made a path: it is kept if it is the best so far.
    void offer(const Path& walk, const std::vector<int>& visits) {
        const bool returns = std::any_of(visits.begin(), visits.end(), [](int count) { return count > 1; });
        if (!returns) return take(walk);
        order_ = distinct(walk.workers, problem_.workers);
        take(along(problem_, order_));
    }

    // By few labels and by local search, among the workers that seem best.
    void look_around(bool is_hasty) {
        const std::vector<int> chosen = promising();
        const PathProblem part = problem_.only(chosen);
        for (const int narrow : {4, 16}) {
            if (!best_.workers.empty() || (is_hasty && narrow > 4) || budget_.is_spent()) break;
            std::vector<double> prices;
            for (const int w : chosen) prices.push_back(prices_[w]);
            Labels labels(part, prices, nullptr, never);
            labels.search(ceiling(), narrow, true, budget_);
            take(back(labels.best(), chosen));
        }
        std::vector<int> order;
        for (const int w : known_order()) order.push_back(int(std::find(chosen.begin(), chosen.end(), w) - chosen.begin()));
        if (order.empty()) return;
        const double worth = ceiling() < never ? ceiling() : std::max(bound_, 1e-9);
        take(back(Chains(part, worth).improve(order, is_hasty ? 1 : most_shakes, 1, budget_), chosen));
    }

    static Path back(Path path, const std::vector<int>& chosen) {
        for (int& w : path.workers) w = chosen[w];
        return path;
    }

    // Of the best path, or what the last walk comes to.
    std::vector<int> known_order() const {
        if (best_.workers.empty()) return order_;
        std::vector<int> order;
        for (const int w : best_.workers)
            if (const auto at = std::find(ids_.begin(), ids_.end(), w); at != ids_.end()) order.push_back(int(at - ids_.begin()));
        return order;
    }

    // Those with the cheapest walks through them, and all that are known to be of use.
    std::vector<int> promising() const {
        std::vector<int> all(problem_.workers);
        std::iota(all.begin(), all.end(), 0);
        if (problem_.workers <= most_promising) return all;
        Relaxation relaxation(problem_);
        relaxation.solve(prices_);
        const std::vector<double> through = relaxation.through(never);
        std::stable_sort(all.begin(), all.end(), [&](int a, int b) { return through[a] < through[b]; });
        all.resize(most_promising);
        for (const int w : known_order())
            if (std::find(all.begin(), all.end(), w) == all.end()) all.push_back(w);
        return all;
    }

    void take(Path path) {
        if (path.workers.empty() || !(path.cost < ceiling())) return;
        if (!second_.empty() && cost_of(second_[0], path) > limit_) return;
        for (int& w : path.workers) w = ids_[w];
        best_ = std::move(path);
    }

    // Set by set of the workers that may have a better path. True: as extend().
    bool by_subsets(int width) {
        const std::vector<bool> able = able_sets();
        for (const Subset& subset : subsets_below(problem_, ceiling())) {
            bound_ = std::max(bound_, least(subset.bound, ceiling()));
            if (subset.bound >= ceiling()) break;
            if (budget_.is_spent()) return false;
            if (!able.empty() && !able[subset.members]) continue;
            budget_.spend(int64_t{64} << std::popcount(subset.members));
            if (std::has_single_bit(subset.members)) {
                take(along(problem_, {std::countr_zero(subset.members)}));
                continue;
            }
            const std::vector<int> order = best_order(problem_, subset.members, ceiling());
            if (order.empty()) continue;
            const double before = best_.cost;
            take(along(problem_, order));
            if (best_.cost < before) continue;
            std::vector<int> chosen = order;  // the best one breaks the second limit
            std::sort(chosen.begin(), chosen.end());
            if (!among(chosen, width)) return false;
        }
        return true;
    }

    // Sets that may keep the second limit; empty: there is none.
    std::vector<bool> able_sets() const {
        std::vector<bool> able;
        if (!second()) return able;
        able.assign(size_t{1} << problem_.workers, false);
        for (const Subset& subset : subsets_below(*second(), std::nextafter(limit_, never))) able[subset.members] = true;
        return able;
    }

    // A path of some of `chosen`; true: there is no better one.
    bool among(const std::vector<int>& chosen, int width) {
        std::optional<PathProblem> other;
        if (second()) other = second()->only(chosen);
        Search part(problem_.only(chosen), ceiling(), budget_, other ? &*other : nullptr, limit_);
        std::vector<double> prices(chosen.size(), 0.0);
        const bool complete = part.tighten(prices, most_turns) || part.bound_ >= part.ceiling() || part.extend(width);
        for (int& w : part.best_.workers) w = chosen[w];
        take(part.best_);
        return complete;
    }

    // True: nothing better than the best path is left.
    bool extend(int width) {
        Labels labels(problem_, prices_, second(), limit_);
        for (const int w : watched_) labels.watch(w);
        while (true) {
            const double left_out = labels.search(ceiling(), width, false, budget_);
            const Path walk = labels.best();
            bound_ = std::max(bound_, least(least(left_out, labels.counts()), ceiling()));
            if (bound_ >= ceiling()) return true;
            if (walk.workers.empty()) return false;
            const std::vector<int> visits = count_visits(walk, problem_.workers);
            offer(walk, visits);
            bool more = false;
            for (int w = 0; w < problem_.workers; ++w)
                if (visits[w] > 1 && labels.watch(w)) more = true, watched_.push_back(w);
            if (bound_ >= ceiling()) return true;
            if (!more || budget_.is_spent()) return false;
        }
    }

    static double cost_of(const PathProblem& p, const Path& path) {
        double cost = p.first[path.workers[0]] + p.home[path.workers.back()];
        int i = 0;
        for (size_t s = 0; s < path.workers.size(); ++s) {
            const int w = path.workers[s], k = path.layers[s];
            if (s > 0) cost += p.hop_of(path.workers[s - 1], w);
            cost += i + k == p.layers ? p.spans.to_end(w, i) : p.spans.from(w, i)[k];
            i += k;
        }
        return cost;
    }

    Found finish(bool complete) {
        return {best_, complete ? std::max(bound_, ceiling()) : std::max(0.0, bound_), complete};
    }

    double below_, limit_, bound_ = -never;
    Budget& budget_;
    PathProblem problem_;
    std::vector<PathProblem> second_;  // none or one
    std::vector<int> ids_;             // of the workers of problem_, in the whole
    std::vector<double> prices_;
    std::vector<int> order_;           // that the last walk comes to
    std::vector<int> watched_;
    Path best_;
};

}  // namespace

PathProblem PathProblem::only(const std::vector<int>& chosen) const {
    PathProblem part(static_cast<int>(chosen.size()), layers, spans.rows);
    const size_t middle = size_t(spans.rows) * (layers + 1);
    for (size_t a = 0; a < chosen.size(); ++a) {
        const int u = chosen[a];
        std::copy_n(&spans.middle[u * middle], middle, &part.spans.middle[a * middle]);
        std::copy_n(&spans.tail[size_t(u) * layers], layers, &part.spans.tail[a * layers]);
        std::copy_n(&spans.reach[size_t(u) * spans.rows], spans.rows, &part.spans.reach[a * spans.rows]);
        part.first[a] = first[u];
        part.home[a] = home[u];
        for (size_t b = 0; b < chosen.size(); ++b) part.set_hop(int(a), int(b), hop_of(u, chosen[b]));
    }
    return part;
}

Found cheapest(const PathProblem& problem, double below, int width, Budget& budget, std::vector<double>& prices,
               const PathProblem* second, double second_limit) {
    return Search(problem, below, budget, second, second_limit).run(width, prices);
}

double relaxed(const PathProblem& problem) {
    return Relaxation(problem).solve(std::vector<double>(problem.workers, 0.0));
}

}  // namespace bloombee::plan
