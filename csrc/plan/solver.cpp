#include "plan/solver.h"

#include <algorithm>

namespace bloombee::plan {
namespace {

// Two values closer than this are one.
constexpr double hair = 1e-10;

// A value this close is sought no further before the proof.
constexpr double enough = 5e-3;

constexpr int narrowest = 32;

// So often a point is looked into before anything is proven of it.
constexpr int tries = 1;

// How many widths there are from the narrowest up to `width`, each eight times the one before.
int widths_to(int width) {
    int count = 1;
    while ((narrowest << (3 * (count - 1))) < width) ++count;
    return count;
}

}  // namespace

Solver::Solver(Instance instance, Budget budget)
    : instance_(std::move(instance)), budget_(budget), links_(instance_.sizes.size()), stages_(instance_.points.size()),
      prices_(instance_.sizes.size(), std::vector<double>(instance_.workers, 0.0)) {}

const LinkTable& Solver::links(int size) {
    if (!links_[size]) links_[size] = std::make_unique<LinkTable>(instance_, size);
    return *links_[size];
}

const StageTable& Solver::stages(int point) {
    if (!stages_[point]) stages_[point] = std::make_unique<StageTable>(instance_, point);
    return *stages_[point];
}

// Paths whose stages and links are busy for at most `cap` at the point; they cost what they take at `timed_size`.
PathProblem Solver::problem(int point, double cap, int timed_size, const std::vector<bool>& allowed) {
    const int n = instance_.workers, own_size = instance_.points[point].size;
    const LinkTable &own = links(own_size), &timed = links(timed_size);
    PathProblem p(n, instance_.layers, 2);
    p.spans = spans_of(instance_, stages(point), point, cap, timed_size, allowed);
    for (int u = 0; u < n; ++u) {
        if (!allowed[u]) continue;
        if (own.first(u).busy <= cap) p.first[u] = timed.first(u).pass;
        if (own.home(u).busy <= cap) p.home[u] = timed.home(u).pass;
        for (int v = 0; v < n; ++v) {
            if (!allowed[v] || (!instance_.rank.empty() && instance_.rank[u] >= instance_.rank[v])) continue;
            const int codec = own.best_codec(u, v, cap);
            if (codec < 0) continue;
            const int used = timed_size == own_size ? codec : timed.best_codec(u, v, never);
            p.set_hop(u, v, timed.hop(u, v, used).pass);
        }
    }
    return p;
}

Chain Solver::chain_of(int point, double cap, const Path& path) {
    Chain chain{path.workers, path.layers, {}, {}};
    const LinkTable& table = links(instance_.points[point].size);
    int i = 0;
    for (size_t s = 0; s < path.workers.size(); ++s) {
        if (s > 0) chain.codec.push_back(table.best_codec(path.workers[s - 1], path.workers[s], cap));
        chain.streamed.push_back(stages(point).placement(path.workers[s], i, i + path.layers[s]));
        i += path.layers[s];
    }
    return chain;
}

double Solver::value_of(int point, const Chain& chain) {
    const Point& at = instance_.points[point];
    return step_of(instance_, stages(point), links(at.size), point, chain) / at.gain;
}

// A plan of this point that is better than `value`, or a bound.
Solver::Try Solver::below(int point, double value, double step_limit, int width, Budget& budget) {
    const Point& at = instance_.points[point];
    const double step = std::min(value * at.gain, step_limit * (1 + hair)), cap = step / at.in_flight;
    const PathProblem p = problem(point, cap, at.size, allowed_);
    Try out;
    out.found = cheapest(p, step, width, budget, prices_[at.size]);
    out.bound = out.found.bound >= step ? value : out.found.bound / at.gain;
    if (!out.found.path.workers.empty()) {
        out.chain = chain_of(point, cap, out.found.path);
        out.value = value_of(point, out.chain);
        if (out.value * at.gain > step_limit * (1 + hair)) out.value = never;
    }
    return out;
}

// Whether a plan better than `value` (which is at most the best known) was found.
bool Solver::attempt(int point, double value, double step_limit, int width, Budget& budget) {
    Try out = below(point, value, step_limit, width, budget);
    bounds_[point] = std::max(bounds_[point], std::min(value, out.bound));
    if (!(out.value < best_.value)) return false;
    best_.found = true;
    best_.value = out.value;
    best_.point = point;
    best_.chain = std::move(out.chain);
    loop_ = out.found.path.cost / instance_.points[point].gain;
    return true;
}

// A first plan: up from what the point can do at most.
void Solver::find(int point, double step_limit, Budget& budget) {
    const double gain = instance_.points[point].gain, last = std::min(step_limit / gain, bounds_[point] * 1e6);
    for (double aim = bounds_[point] * 1.25; best_.value == never && !budget.is_spent(); aim *= 1.5) {
        attempt(point, aim < last ? aim : never, step_limit, hasty, budget);
        if (!(aim < last) || bounds_[point] == never) return;
    }
}

// Down from the best value by halves, twice; the loop that was found under one cap is about the least under any lower one.
void Solver::improve(int point, double step_limit, Budget& budget) {
    double& low = lows_[point];
    for (int turn = 0; turn < 2 && best_.found && !budget.is_spent(); ++turn) {
        low = std::max(low, bounds_[point]);
        if (low >= best_.value * (1 - enough)) return;
        const double aim = (low + best_.value) / 2;
        low = std::max(low, attempt(point, aim, step_limit, quick, budget) ? loop_ : aim);
    }
}

// Bounds alone, by halves: one at a lower cap may be higher than one at the value itself.
void Solver::raise(int point, double step_limit, Budget& budget) {
    double high = best_.value * (1 - hair);
    for (int turn = 0; turn < 3 && best_.found && bounds_[point] < high * (1 - 1e-4) && !budget.is_spent(); ++turn) {
        const double aim = turn == 0 ? high : (bounds_[point] + high) / 2;
        attempt(point, aim, step_limit, bounds_only, budget);
        high = std::min(best_.value * (1 - hair), bounds_[point] < aim ? aim : high);
    }
}

// Until nothing better is left, or as far as the width goes.
void Solver::prove(int point, double step_limit, int width, Budget& budget) {
    while (bounds_[point] < best_.value * (1 - hair) && !budget.is_spent())
        if (!attempt(point, best_.found ? best_.value * (1 - hair) : never, step_limit, width, budget)) break;
    raise(point, step_limit, budget);
}

// Works on the points that could be better than the best plan, those first that had the least effort, the most promising of them
// first; ends where the last effort was not enough.
template <class Work>
void Solver::work(int levels, const Budget& budget, Work work) {
    std::vector<int> level(instance_.points.size(), 0);
    while (!budget.is_spent()) {
        int next = -1;
        for (int point = 0; point < int(level.size()); ++point) {
            if (level[point] == levels || !(bounds_[point] < best_.value * (1 - hair))) continue;
            if (next < 0 || level[point] < level[next] || (level[point] == level[next] && bounds_[point] < bounds_[next]))
                next = point;
        }
        if (next < 0) return;
        work(next, level[next]++);
    }
}

namespace {

// Whether all layers fit where no span takes longer than `cap`.
bool fits(const PathProblem& p, double cap) {
    int64_t fit = 0;
    for (int w = 0; w < p.workers; ++w) {
        int most = 0;
        for (int row = 0; row < p.spans.rows; ++row) {
            const double* span = p.spans.from(w, row);
            const int reach = p.spans.reach[p.spans.row(w, row)];
            most = std::max(most, int(std::upper_bound(span + 1, span + 1 + reach, cap) - span) - 1);
        }
        for (int i = 0; i < p.layers && most < p.layers - i; ++i)
            if (p.spans.to_end(w, i) <= cap) most = p.layers - i;
        fit += most;
    }
    return fit >= p.layers;
}

// The longest span is no shorter.
double least_cap(const PathProblem& p, double high) {
    if (!fits(p, never)) return never;
    double low = 0;
    while (!fits(p, high)) low = high, high = high > 0 ? high * 2 : 1e-9;
    for (int turn = 0; turn < 40 && high - low > 1e-9 * high; ++turn) {
        const double middle = (low + high) / 2;
        (fits(p, middle) ? high : low) = middle;
    }
    return low;
}

}  // namespace

// What the workers' room and the relaxed loop say of all points of a size: no point of it has more room than the one with the
// fewest microbatches.
void Solver::bound_size(int size, double step_limit) {
    int least = -1;
    for (int point = 0; point < int(bounds_.size()); ++point)
        if (instance_.points[point].size == size &&
            (least < 0 || instance_.points[point].in_flight < instance_.points[least].in_flight))
            least = point;
    if (least < 0) return;
    const PathProblem p = problem(least, never, size, allowed_);
    const double loop = relaxed(p), cap = least_cap(p, loop == never ? 0 : loop);
    for (int point = 0; point < int(bounds_.size()); ++point) {
        const Point& at = instance_.points[point];
        if (at.size != size) continue;
        const double step = std::max(loop, at.in_flight * cap);
        bounds_[point] = step > step_limit * (1 + hair) ? never : step / at.gain;
    }
}

Solution Solver::finish(const Budget& used) {
    budget_.spend(used.spent());
    Solution out = best_;
    out.bound = *std::min_element(bounds_.begin(), bounds_.end());
    if (out.found) out.bound = std::min(out.bound, out.value);
    out.proven = out.found ? out.bound >= out.value * (1 - 1e-9) : out.bound == never;
    return out;
}

Solution Solver::most_tokens(double step_limit, const std::vector<bool>& allowed, int width, double share) {
    Budget budget = budget_.share(share);
    allowed_ = allowed;
    best_ = {};
    bounds_.assign(instance_.points.size(), 0.0);
    lows_ = bounds_;
    for (int size = 0; size < int(instance_.sizes.size()); ++size) bound_size(size, step_limit);
    work(1 + tries + widths_to(width), budget, [&](int point, int level) {
        if (!best_.found) {
            find(point, step_limit, budget);
            improve(point, step_limit, budget);
        }
        if (level == 0) raise(point, step_limit, budget);
        if (level > 0 && level <= tries) improve(point, step_limit, budget);
        if (level > tries) prove(point, step_limit, std::min(width, narrowest << (3 * (level - tries - 1))), budget);
    });
    points_ = bounds_;
    return most_ = finish(budget);
}

Solution Solver::least_alone(double value, const std::vector<bool>& allowed, int width, double share) {
    Budget budget = budget_.share(share);
    if (allowed != allowed_ || points_.empty()) points_.assign(instance_.points.size(), 0.0);
    best_ = {};
    int roomy = 0;
    for (int point = 0; point < int(bounds_.size()); ++point)
        if (instance_.points[point].gain < instance_.points[roomy].gain) roomy = point;
    bounds_.assign(instance_.points.size(), relaxed(problem(roomy, never, int(instance_.sizes.size()) - 1, allowed)));
    for (size_t point = 0; point < bounds_.size(); ++point)
        if (points_[point] > value * (1 + hair)) bounds_[point] = never;
    if (most_.found && allowed == allowed_ && most_.value <= value) {
        best_ = most_;
        best_.value = alone_of(most_.point, most_.chain);
    }
    std::vector<std::vector<double>> prices(instance_.points.size(), std::vector<double>(instance_.workers, 0.0));
    work(1 + widths_to(width), budget, [&](int point, int level) {
        const int wide = level == 0 ? quick : std::min(width, narrowest << (3 * (level - 1)));
        alone_at(point, value, allowed, wide, prices[point], budget);
    });
    return finish(budget);
}

// The loop of a chain at b = 1.
double Solver::alone_of(int point, const Chain& chain) {
    const int alone = int(instance_.sizes.size()) - 1;
    const LinkTable& table = links(alone);
    double loop = table.first(chain.workers.front()).pass + table.home(chain.workers.back()).pass;
    int i = 0;
    for (size_t s = 0; s < chain.workers.size(); ++s) {
        const int w = chain.workers[s], j = i + chain.layers[s];
        if (s > 0) loop += table.hop(chain.workers[s - 1], w, table.best_codec(chain.workers[s - 1], w, never)).pass;
        loop += stages(point).busy(instance_.sizes[alone], w, i, j, chain.streamed[s]);
        i = j;
    }
    return loop;
}

// The least loop at b = 1 of chains that reach `value` at this point.
void Solver::alone_at(int point, double value, const std::vector<bool>& allowed, int width, std::vector<double>& prices,
                      Budget& budget) {
    const Point& at = instance_.points[point];
    const double step = value * at.gain, cap = step / at.in_flight;
    const PathProblem own = problem(point, cap, at.size, allowed);
    if (relaxed(own) > step) {
        bounds_[point] = never;
        return;
    }
    const PathProblem timed = problem(point, cap, int(instance_.sizes.size()) - 1, allowed);
    const double ceiling = best_.found ? best_.value * (1 - hair) : never;
    const Found found = cheapest(timed, ceiling, width, budget, prices, step < never ? &own : nullptr, step);
    bounds_[point] = std::max(bounds_[point], std::min(found.bound, ceiling));
    if (found.path.workers.empty()) return;
    const Chain chain = chain_of(point, cap, found.path);
    if (value_of(point, chain) > value * (1 + hair)) return;
    best_.found = true;
    best_.value = alone_of(point, chain);
    best_.point = point;
    best_.chain = chain;
}

std::vector<double> Solver::layer_rates() {
    std::vector<double> rates(instance_.workers, 0.0);
    for (int point = 0; point < int(instance_.points.size()); ++point) {
        const Point& at = instance_.points[point];
        const Spans spans =
            spans_of(instance_, stages(point), point, never, at.size, std::vector<bool>(instance_.workers, true));
        const double tokens = at.gain / at.in_flight;
        for (int w = 0; w < instance_.workers; ++w)
            for (int i = 0; i < instance_.layers; ++i) {
                for (int k = 1; k <= spans.longest(w, i); ++k) rates[w] = std::max(rates[w], k * tokens / spans.from(w, i)[k]);
                if (spans.to_end(w, i) < never) rates[w] = std::max(rates[w], (instance_.layers - i) * tokens / spans.to_end(w, i));
            }
    }
    return rates;
}

std::vector<int> Solver::room(int point) {
    const Spans spans = spans_of(instance_, stages(point), point, never, instance_.points[point].size,
                                 std::vector<bool>(instance_.workers, true));
    std::vector<int> room(instance_.workers, 0);
    for (int w = 0; w < instance_.workers; ++w)
        for (int i = 0; i < instance_.layers; ++i) room[w] = std::max(room[w], spans.any(w, i));
    return room;
}

}  // namespace bloombee::plan
