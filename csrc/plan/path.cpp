#include "plan/path.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <optional>

#include "plan/chains.h"
#include "plan/labels.h"
#include "plan/lagrangian.h"
#include "plan/relaxation.h"
#include "plan/subsets.h"

namespace bloombee::plan {
namespace {

constexpr int most_turns = 400;
constexpr int most_promising = 48;
constexpr int few_labels = 16;

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
    Search(const PathProblem& whole, double below, Budget& budget, const Prices& prices, const PathProblem* second, double limit)
        : below_(below), limit_(limit), budget_(budget), lagrangian_(whole, second, limit, prices, below) {}

    Found run(Effort effort, Prices& prices) {
        if (is_too_small(problem())) return {{}, never, true, {}};
        const bool is_done = tighten(effort.turns);
        if (is_done || bound_ >= ceiling()) return finish(true);  // (with prices that go up and up if there is no path)
        prices = lagrangian_.prices();
        lagrangian_.settle();
        if (effort.descents > 0) look_around(effort.descents);
        if (bound_ >= ceiling()) return finish(true);
        if (effort.width == 0 || budget_.is_spent()) return finish(false);
        const bool few = problem().workers <= most_in_subsets && problem().layers > 2 && problem().spans.rows == 2;
        if (few) return finish(extend(8) || by_subsets(effort.width));
        for (int wide = std::min(effort.width, 32);; wide = std::min(effort.width, wide * 8)) {
            if (extend(wide)) return finish(true);
            if (wide == effort.width || budget_.is_spent()) return finish(false);
        }
    }

  private:
    double ceiling() const { return least(below_, best_.cost); }
    const PathProblem& problem() const { return lagrangian_.problem(); }
    const PathProblem* second() const { return lagrangian_.second(); }
    const std::vector<int>& ids() const { return lagrangian_.ids(); }

    // Bounds rise, workers that no better path visits are left out. True: the best path is found, or there is none.
    bool tighten(int turns) {
        double at_last_cut = -never;
        for (int turn = 0; turn < turns && !lagrangian_.is_still(); ++turn) {
            const double bound = lagrangian_.solve();
            budget_.spend(lagrangian_.steps());
            bound_ = std::max(bound_, bound);
            if (bound_ >= ceiling() || bound == never) return true;
            offer(lagrangian_.walk(), lagrangian_.visits());
            if (bound_ >= ceiling()) return true;
            const double aim = ceiling() < never ? ceiling() : bound_ + std::abs(bound_) * 0.1 + 1e-9;
            const bool is_time = turn % 8 == 7 && ceiling() < never && bound_ > at_last_cut;
            if (is_time) at_last_cut = bound_;
            const std::vector<int> chosen = is_time ? able() : std::vector<int>();
            if (!lagrangian_.move(aim)) return !second();  // else the walk may be one that the second costs forbid
            if (!chosen.empty()) lagrangian_.keep_only(chosen), order_.clear();
            if (budget_.is_spent()) break;
        }
        return false;
    }

    // The workers that a better path may visit; empty: nearly all.
    std::vector<int> able() {
        const std::vector<double> through = lagrangian_.through(ceiling());
        std::vector<int> chosen;
        for (int v = 0; v < problem().workers; ++v)
            if (through[v] < ceiling()) chosen.push_back(v);
        if (chosen.size() > 0.9 * problem().workers) chosen.clear();
        return chosen;
    }

    // A walk made a path: it is kept if it is the best so far.
    void offer(const Path& walk, const std::vector<int>& visits) {
        const bool returns = std::any_of(visits.begin(), visits.end(), [](int count) { return count > 1; });
        if (!returns) return take(walk);
        order_ = distinct(walk.workers, problem().workers);
        take(along(problem(), order_));
    }

    // By few labels and by local search, among the workers that seem best.
    void look_around(int descents) {
        const std::vector<int> chosen = promising();
        PathProblem guide = problem();
        if (second()) mix(guide, problem(), *second(), lagrangian_.prices().second);
        const PathProblem part = guide.only(chosen);
        if (known_order().empty()) {
            const PathProblem priced = lagrangian_.priced().only(chosen);
            Labels labels(part, priced, lagrangian_.constant(), nullptr, never);
            labels.search(second() ? never : ceiling(), few_labels, true, budget_);
            take(back(labels.best(), chosen));
        }
        std::vector<int> order;
        for (const int w : known_order()) order.push_back(int(std::find(chosen.begin(), chosen.end(), w) - chosen.begin()));
        if (order.empty()) return;
        const double worth = ceiling() < never && !second() ? ceiling() : std::max(relaxed(part), 1e-9);
        take(back(Chains(part, worth).improve(order, descents, uint64_t(descents), budget_), chosen));
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
            if (const auto at = std::find(ids().begin(), ids().end(), w); at != ids().end())
                order.push_back(int(at - ids().begin()));
        return order;
    }

    // Those with the cheapest walks through them, and all that are known to be of use.
    std::vector<int> promising() {
        std::vector<int> all(problem().workers);
        std::iota(all.begin(), all.end(), 0);
        if (problem().workers <= most_promising) return all;
        lagrangian_.solve();
        const std::vector<double> through = lagrangian_.through(never);
        std::stable_sort(all.begin(), all.end(), [&](int a, int b) { return through[a] < through[b]; });
        all.resize(most_promising);
        for (const int w : known_order())
            if (std::find(all.begin(), all.end(), w) == all.end()) all.push_back(w);
        return all;
    }

    void take(Path path) {
        if (path.workers.empty()) return;
        path.cost = cost_of(problem(), path);
        if (!(path.cost < ceiling())) return;
        if (second() && cost_of(*second(), path) > limit_) return;
        for (int& w : path.workers) w = ids()[w];
        best_ = std::move(path);
    }

    // Set by set of the workers that may have a better path. True: as extend().
    bool by_subsets(int width) {
        const std::vector<bool> able = able_sets();
        for (const Subset& subset : subsets_below(problem(), ceiling())) {
            bound_ = std::max(bound_, least(subset.bound, ceiling()));
            if (subset.bound >= ceiling()) break;
            if (budget_.is_spent()) return false;
            if (!able.empty() && !able[subset.members]) continue;
            budget_.spend(int64_t{64} << std::popcount(subset.members));
            if (std::has_single_bit(subset.members)) {
                take(along(problem(), {std::countr_zero(subset.members)}));
                continue;
            }
            const std::vector<int> order = best_order(problem(), subset.members, ceiling());
            if (order.empty()) continue;
            const double before = best_.cost;
            take(along(problem(), order));
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
        able.assign(size_t{1} << problem().workers, false);
        for (const Subset& subset : subsets_below(*second(), std::nextafter(limit_, never))) able[subset.members] = true;
        return able;
    }

    // A path of some of `chosen`; true: there is no better one.
    bool among(const std::vector<int>& chosen, int width) {
        std::optional<PathProblem> other;
        if (second()) other = second()->only(chosen);
        const Prices none(static_cast<int>(chosen.size()));
        Search part(problem().only(chosen), ceiling(), budget_, none, other ? &*other : nullptr, limit_);
        bool is_complete = part.tighten(most_turns) || part.bound_ >= part.ceiling();
        if (!is_complete) {
            part.lagrangian_.settle();
            is_complete = part.extend(width);
        }
        for (int& w : part.best_.workers) w = chosen[w];
        take(part.best_);
        return is_complete;
    }

    // True: nothing better than the best path is left.
    bool extend(int width) {
        Labels labels(problem(), lagrangian_.priced(), lagrangian_.constant(), second(), limit_);
        for (const int w : watched_) labels.watch(w);
        while (true) {
            const double left_out = labels.search(ceiling(), width, false, budget_);
            const Path walk = labels.best();
            bound_ = std::max(bound_, least(least(left_out, labels.counts()), ceiling()));
            if (bound_ >= ceiling()) return true;
            if (walk.workers.empty()) return false;
            std::vector<int> visits(problem().workers, 0);
            for (const int w : walk.workers) ++visits[w];
            offer(walk, visits);
            bool more = false;
            for (int w = 0; w < problem().workers; ++w)
                if (visits[w] > 1 && labels.watch(w)) more = true, watched_.push_back(w);
            if (bound_ >= ceiling()) return true;
            if (!more || budget_.is_spent()) return false;
        }
    }

    Found finish(bool complete) {
        // The relaxation leaves out what cannot lead to a better path, so what it says beyond the ceiling says nothing.
        std::vector<int> walk;
        for (const int w : order_) walk.push_back(ids()[w]);
        return {best_, complete ? ceiling() : least(std::max(0.0, bound_), ceiling()), complete, walk};
    }

    double below_, limit_, bound_ = -never;
    Budget& budget_;
    Lagrangian lagrangian_;
    std::vector<int> order_;    // that the last walk comes to
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

Prices Prices::scaled(double factor, double of_second) const {
    Prices out = *this;
    for (double& price : out.workers) price *= factor;
    for (Set& set : out.sets)
        for (double& price : set.prices) price *= factor;
    out.second = of_second;
    return out;
}

Found cheapest(const PathProblem& problem, double below, Effort effort, Budget& budget, Prices& prices, const PathProblem* second,
               double second_limit) {
    return Search(problem, below, budget, prices, second, second_limit).run(effort, prices);
}

Path along(const PathProblem& p, const std::vector<int>& order) {
    PathProblem part = p.only(order);
    for (int a = 0; a < part.workers; ++a)
        for (int b = 0; b < a; ++b) part.set_hop(a, b, never);
    Relaxation relaxation(part);
    if (relaxation.solve() == never) return {};
    Path path = relaxation.walk();
    for (int& w : path.workers) w = order[w];
    return path;
}

double relaxed(const PathProblem& problem) {
    return Relaxation(problem).solve();
}

}  // namespace bloombee::plan
