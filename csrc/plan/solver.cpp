#include "plan/solver.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "plan/routes.h"

namespace bloombee::plan {
namespace {

// Two values closer than this are one.
constexpr double hair = 1e-10;

// A value this close is sought no further before the proof.
constexpr double enough = 5e-3;

// Between a point's bound and the best value.
constexpr int most_aims = 5;

// Rounds of Routes, at first, and how much better than the best plan one has to be that they look for.
constexpr int first_rounds = 20;
constexpr double least_part = 1e-3, most_part = 0.3;

// What is done for a point, one after the other, as long as its bound is the least of all. The first widths are narrow: a search
// for a plan that is better by half the gap ends early where there is none.
constexpr Effort efforts[] = {{40, 0, 0},    {40, 1, 0},    {100, 3, 0},      {200, 4, 32},
                              {400, 5, 256}, {400, 6, 2048}, {400, 8, 1 << 14}};
// So few are soon searched from several orders, and with few a first plan is easily stuck.
constexpr int few_workers = 24;
constexpr int levels = int(std::size(efforts));

Effort effort_at(int level, int width) {
    Effort effort = efforts[level];
    effort.width = std::min(effort.width, width);
    return effort;
}

}  // namespace

Solver::Solver(Instance instance, Budget budget)
    : instance_(std::move(instance)), budget_(budget), layers_(instance_), links_(instance_.sizes.size()),
      stages_(instance_.points.size()), spans_(instance_.points.size()), alone_spans_(instance_.points.size()),
      prices_(instance_.points.size(), Prices(instance_.workers)), walks_(instance_.points.size()) {}

const LinkTable& Solver::links(int size) {
    if (!links_[size]) links_[size] = std::make_unique<LinkTable>(instance_, size);
    return *links_[size];
}

const StageTable& Solver::stages(int point) {
    if (!stages_[point]) stages_[point] = std::make_unique<StageTable>(instance_, layers_, point);
    return *stages_[point];
}

const Spans& Solver::spans(int point, int size) {
    std::unique_ptr<Spans>& spans = (size == instance_.points[point].size ? spans_ : alone_spans_)[point];
    if (!spans) spans = std::make_unique<Spans>(spans_of(instance_, stages(point), size));
    return *spans;
}

// Paths whose stages and links are busy for at most `cap` at the point; they cost what they take at `timed_size`.
PathProblem Solver::problem(int point, double cap, int timed_size, const std::vector<bool>& allowed) {
    const int n = instance_.workers, own_size = instance_.points[point].size;
    const LinkTable &own = links(own_size), &timed = links(timed_size);
    PathProblem p(n, instance_.layers, 2);
    p.spans = capped(spans(point, timed_size), spans(point, own_size), cap, allowed);
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

// Looks for a plan of this point that is better than `value`, and raises the point's bound, to `value` if there is none. Whether
// a better plan than the best so far was found.
bool Solver::attempt(int point, double value, double step_limit, Effort effort, Budget& budget) {
    const Point& at = instance_.points[point];
    const double step = std::min(value * at.gain, step_limit * (1 + hair)), cap = step / at.in_flight;
    const PathProblem p = problem(point, cap, at.size, allowed_);
    // (a point without prices does better with those of another one than with none)
    if (priced_ >= 0 && prices_[point].is_empty()) prices_[point] = prices_[priced_];
    priced_ = point;
    const Found found = cheapest(p, step, effort, budget, prices_[point]);
    if (!found.walk.empty()) walks_[point] = found.walk;
    bounds_[point] = std::max(bounds_[point], found.bound >= step ? value : std::min(value, found.bound / at.gain));
    return take(point, cap, found.path, step_limit);
}

// Whether the path, found under a cap, is a better plan than the best so far.
bool Solver::take(int point, double cap, const Path& path, double step_limit) {
    if (path.workers.empty()) return false;
    const double gain = instance_.points[point].gain;
    Chain chain = chain_of(point, cap, path);
    const double own = value_of(point, chain);
    if (!(own < best_.value) || own * gain > step_limit * (1 + hair)) return false;
    best_.found = true;
    best_.value = own;
    best_.point = point;
    best_.chain = std::move(chain);
    loop_ = path.cost / gain;
    return true;
}

// Workers that may stand in any order, with layers that are alike: what Routes can search.
bool Solver::is_alike() const { return instance_.kinds == 1 && instance_.rank.empty() && instance_.layers > 1; }

// Looks for a plan of this point that is better than `value`, from an order of workers. Whether a better plan than the best so far
// was found.
bool Solver::reroute(int point, double value, double step_limit, const std::vector<int>& start, int rounds, Budget& budget) {
    const Point& at = instance_.points[point];
    const double step = std::min(value * at.gain, step_limit * (1 + hair)), cap = step / at.in_flight;
    const PathProblem p = problem(point, cap, at.size, allowed_);
    const double worth = step < never ? step : relaxed(p);
    if (worth == never) return false;
    const auto judge = [&](const std::vector<int>& order) { return take(point, cap, along(p, order), step_limit); };
    return Routes(p, worth).find(start, step, judge, rounds, seed_++, budget);
}

// Down from the best value, in steps that grow with each that comes off. Routes are quick, so this is what finds plans.
void Solver::scout(int point, double step_limit, int rounds, Budget& budget) {
    double part = best_.found ? 2 * least_part : most_part;
    if (!best_.found && !reroute(point, never, step_limit, {}, rounds, budget)) return;
    while (part >= least_part && !budget.is_spent()) {
        const double aim = std::max(best_.value * (1 - part), bounds_[point] * (1 + hair));
        if (!(aim < best_.value * (1 - hair))) return;
        const std::vector<int> walk = std::exchange(walks_[point], {});
        const bool is_better = reroute(point, aim, step_limit, walk.empty() ? best_.chain.workers : walk, rounds, budget);
        part = is_better ? std::min(most_part, 2 * part) : part / 4;
    }
}

// Of each point that could have the best plan.
void Solver::scout_all(double step_limit, Budget& budget) {
    std::vector<int> order(instance_.points.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [this](int a, int b) { return bounds_[a] < bounds_[b]; });
    for (const int point : order)
        if (bounds_[point] < best_.value * (1 - enough) && !budget.is_spent()) scout(point, step_limit, first_rounds, budget);
}

// A first plan: up from what the point can do at most, in few steps, as local search takes long where there is nothing to find.
void Solver::find(int point, double step_limit, Budget& budget) {
    const double gain = instance_.points[point].gain, last = std::min(step_limit / gain, bounds_[point] * 1e6);
    Effort effort = efforts[0];
    for (double aim = bounds_[point] * 1.25; !best_.found && bounds_[point] < never && !budget.is_spent(); aim *= 2) {
        attempt(point, aim < last ? aim : never, step_limit, effort, budget);
        if (!(aim < last) && effort.descents > 0) return;
        effort = efforts[1];
    }
}

// Down from the best value by halves. A loop found under one cap is about the least under any lower one.
void Solver::improve(int point, double step_limit, Effort effort, Budget& budget) {
    double& low = lows_[point];
    while (best_.found && !budget.is_spent()) {
        low = std::max(low, bounds_[point]);
        const bool is_near = low >= best_.value * (1 - enough);
        const double aim = is_near ? best_.value * (1 - hair) : (low + best_.value) / 2;
        if (bounds_[point] >= aim) return;
        const bool is_better = attempt(point, aim, step_limit, effort, budget);
        if (is_near && !is_better) return;
        low = std::max(low, is_better ? loop_ : is_near ? low : aim);
    }
}

// Up to the best value; where that is too much to prove, as near to it as a few halvings come.
void Solver::raise(int point, double step_limit, Effort effort, Budget& budget) {
    double failed = never;
    for (int turn = 0; turn < most_aims && !budget.is_spent(); ++turn) {
        const double high = best_.value * (1 - hair);
        if (bounds_[point] >= high) return;
        const double aim = failed < never ? (bounds_[point] + std::min(failed, high)) / 2 : high;
        attempt(point, aim, step_limit, effort, budget);
        if (bounds_[point] < aim) failed = aim;
        if (failed < bounds_[point] * (1 + 2e-3)) return;
    }
}

// Works on the point with the least bound, as long as it could be better than the best plan, each time with more effort.
template <class Work>
void Solver::work(const Budget& budget, Work work) {
    std::vector<int> level(instance_.points.size(), 0);
    while (!budget.is_spent()) {
        int next = -1;
        for (int point = 0; point < int(level.size()); ++point) {
            if (level[point] == levels || !(bounds_[point] < best_.value * (1 - hair))) continue;
            if (next < 0 || bounds_[point] < bounds_[next]) next = point;
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

// The open point of a size with the fewest microbatches, -1: none. No other has more room.
int Solver::roomiest(int size) const {
    int least = -1;
    for (int point = 0; point < int(bounds_.size()); ++point)
        if (instance_.points[point].size == size && bounds_[point] < best_.value * (1 - hair) &&
            (least < 0 || instance_.points[point].in_flight < instance_.points[least].in_flight))
            least = point;
    return least;
}

// What the workers' room and the relaxed loop say of all points of a size.
void Solver::bound_size(int size, double step_limit) {
    const int least = roomiest(size);
    if (least < 0) return;
    const PathProblem p = problem(least, never, size, allowed_);
    const double loop = relaxed(p), cap = least_cap(p, loop == never ? 0 : loop);
    for (int point = 0; point < int(bounds_.size()); ++point) {
        const Point& at = instance_.points[point];
        if (at.size != size) continue;
        const double step = std::max(loop, at.in_flight * cap);
        bounds_[point] = step > step_limit * (1 + hair) ? never : step / at.gain;
    }
    lift_size(size, step_limit);
}

double Solver::least_bound(int size) const {
    double least = never;
    for (int point = 0; point < int(bounds_.size()); ++point)
        if (instance_.points[point].size == size) least = std::min(least, bounds_[point]);
    return least;
}

// The same with the loop relaxed under the cap of a value, which is sought by halves: where every loop is too long for it.
void Solver::lift_size(int size, double step_limit) {
    double high = never;
    for (int turn = 0; turn < 7; ++turn) {
        const double low = least_bound(size), aim = high < never ? (low + high) / 2 : 1.5 * low;
        if (low == never) return;
        const int roomy = roomiest(size);
        const double tokens = instance_.points[roomy].gain / instance_.points[roomy].in_flight;
        const double loop = relaxed(problem(roomy, aim * tokens, size, allowed_));
        for (int point = 0; point < int(bounds_.size()); ++point) {
            const double gain = instance_.points[point].gain;
            if (instance_.points[point].size != size) continue;
            const bool is_none = loop > step_limit * (1 + hair) && aim * gain >= step_limit;
            bounds_[point] = std::max(bounds_[point], is_none ? never : std::min(aim, loop / gain));
        }
        if (least_bound(size) < aim) high = aim;
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

// A solver of the allowed workers alone, where they are so few that the tables of all would take longer; null: they are not.
Solver* Solver::part_of(const std::vector<bool>& allowed) {
    std::vector<int> ids;
    for (int w = 0; w < instance_.workers; ++w)
        if (allowed[w]) ids.push_back(w);
    if (ids.empty() || 2 * int(ids.size()) >= instance_.workers) return nullptr;
    if (!part_ || ids != part_ids_) {
        part_ = std::make_unique<Solver>(instance_.only(ids), budget_);
        part_ids_ = std::move(ids);
    }
    return part_.get();
}

template <class Search>
Solution Solver::in_part(Search search) {
    part_->budget_ = budget_;
    Solution found = search(std::vector<bool>(part_ids_.size(), true));
    budget_ = part_->budget_;
    for (int& w : found.chain.workers) w = part_ids_[w];
    return found;
}

Solution Solver::most_tokens(double step_limit, const std::vector<bool>& allowed, int width, double share) {
    if (Solver* part = part_of(allowed))
        return in_part([&](const std::vector<bool>& all) { return part->most_tokens(step_limit, all, width, share); });
    Budget budget = budget_.share(share);
    allowed_ = allowed;
    best_ = {};
    bounds_.assign(instance_.points.size(), 0.0);
    lows_ = bounds_;
    for (std::vector<int>& walk : walks_) walk.clear();
    for (int size = 0; size < int(instance_.sizes.size()); ++size) bound_size(size, step_limit);
    if (is_alike()) scout_all(step_limit, budget);
    work(budget, [&](int point, int level) {
        if (!best_.found) {
            find(point, step_limit, budget);
            improve(point, step_limit, {40, instance_.workers <= few_workers ? 3 : 1, 0}, budget);
        }
        const Effort effort = effort_at(level, width);
        if (effort.descents > 0 && is_alike()) {
            scout(point, step_limit, first_rounds * effort.descents, budget);
        } else if (effort.descents > 0) {
            improve(point, step_limit, {effort.turns, effort.descents, 0}, budget);
        }
        raise(point, step_limit, {effort.turns, 0, effort.width}, budget);
    });
    points_ = bounds_;
    return most_ = finish(budget);
}

Solution Solver::least_alone(double value, const std::vector<bool>& allowed, int width, double share) {
    if (Solver* part = part_of(allowed))
        return in_part([&](const std::vector<bool>& all) { return part->least_alone(value, all, width, share); });
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
    // Prices of the search for most tokens, for both times at once, each worth the same.
    std::vector<Prices> prices = prices_;
    for (size_t point = 0; point < prices.size(); ++point) {
        const double part = best_.found ? best_.value / (value * instance_.points[point].gain) : 0.0;
        prices[point] = prices[point].scaled(2 * part, part);
    }
    work(budget, [&](int point, int level) { alone_at(point, value, allowed, effort_at(level, width), prices[point], budget); });
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
        loop += stages(point).busy(alone, w, i, j, chain.streamed[s]);
        i = j;
    }
    return loop;
}

// The least loop at b = 1 of chains that reach `value` at this point.
void Solver::alone_at(int point, double value, const std::vector<bool>& allowed, Effort effort, Prices& prices,
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
    const Found found = cheapest(timed, ceiling, effort, budget, prices, step < never ? &own : nullptr, step);
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
        const Spans& spans = this->spans(point, at.size);
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
    const Spans& spans = this->spans(point, instance_.points[point].size);
    std::vector<int> room(instance_.workers, 0);
    for (int w = 0; w < instance_.workers; ++w)
        for (int i = 0; i < instance_.layers; ++i) room[w] = std::max(room[w], spans.any(w, i));
    return room;
}

}  // namespace bloombee::plan
