#include "plan/lagrangian.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "plan/clusters.h"

namespace bloombee::plan {
namespace {

constexpr size_t most_sets = 256;
// The share of the last walk in the average of offences.
constexpr double fresh = 0.1;
// So many turns without a better bound, and moves become smaller.
constexpr int patience = 8;
// Of one offence against the second limit: about as many visits. (It is a part of the limit, others are whole numbers.)
constexpr double weight = 8.0;
// No price is more than so many paths are worth: where there is no path prices would rise for ever, and leave no digits for
// costs.
constexpr double dearest = 4.0;

std::vector<int> positions(const std::vector<int>& chosen, int workers) {
    std::vector<int> at(workers, -1);
    for (size_t a = 0; a < chosen.size(); ++a) at[chosen[a]] = int(a);
    return at;
}

std::vector<int> renamed(const std::vector<int>& members, const std::vector<int>& at) {
    std::vector<int> out;
    for (const int w : members)
        if (at[w] >= 0) out.push_back(at[w]);
    return out;
}

}  // namespace

double cost_of(const PathProblem& p, const Path& path) {
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

void mix(PathProblem& to, const PathProblem& own, const PathProblem& other, double part) {
    const auto add = [part](std::vector<double>& sum, const std::vector<double>& a, const std::vector<double>& b) {
        for (size_t at = 0; at < sum.size(); ++at) sum[at] = part > 0 ? a[at] + part * b[at] : a[at];
    };
    add(to.spans.middle, own.spans.middle, other.spans.middle);
    add(to.spans.tail, own.spans.tail, other.spans.tail);
    add(to.first, own.first, other.first);
    add(to.home, own.home, other.home);
    add(to.hop, own.hop, other.hop);
    add(to.hop_into, own.hop_into, other.hop_into);
}

Lagrangian::Lagrangian(const PathProblem& problem, const PathProblem* second, double limit, const Prices& start,
                       double worth)
    : problem_(problem), priced_(problem), limit_(limit), n_(problem.workers), ids_(n_), whole_(n_, 0.0),
      clusters_(clusters_of(problem)), now_(start.workers) {
    std::iota(ids_.begin(), ids_.end(), 0);
    now_.push_back(second ? start.second * limit / weight : 0.0);
    if (second) second_.emplace(*second);
    for (const Prices::Set& set : start.sets) {
        add_set(set.members);
        std::copy(set.prices.begin(), set.prices.end(), now_.end() - long(set.members.size()));
    }
    for (double& price : now_) price = worth < never ? std::min(price, dearest * worth) : 0.0;
    best_ = now_;
    mean_offence_.assign(now_.size(), 0.0);
    relaxation_.emplace(priced_);
}

void Lagrangian::add_set(std::vector<int> members) {
    Set set{std::move(members), std::vector<double>(n_, 0.0), now_.size(), {}};
    for (const int w : set.members) set.inside[w] = 1;
    for (std::vector<double>* values : {&now_, &best_, &mean_offence_}) values->resize(set.first + set.members.size(), 0.0);
    sets_.push_back(std::move(set));
}

// A visit costs its worker's prices, and whoever enters a set gets the prices of that set's members back.
void Lagrangian::set_prices() {
    std::vector<double> own(now_.begin(), now_.begin() + n_), back(sets_.size(), 0.0);
    for (size_t s = 0; s < sets_.size(); ++s) {
        const Set& set = sets_[s];
        for (size_t a = 0; a < set.members.size(); ++a) {
            own[set.members[a]] += now_[set.first + a];
            back[s] += now_[set.first + a];
        }
        for (const int w : set.members) own[w] -= back[s];
    }
    if (second_) mix(priced_, problem_, *second_, now_[n_] * weight / limit_);
    const std::vector<double>& hops = second_ ? priced_.hop_into : problem_.hop_into;
    for (int v = 0; v < n_; ++v) {
        for (size_t at = size_t(v) * n_; at < size_t(v + 1) * n_; ++at) priced_.hop_into[at] = hops[at] + own[v];
        priced_.first[v] = (second_ ? priced_.first[v] : problem_.first[v]) + own[v];
    }
    for (size_t s = 0; s < sets_.size(); ++s) {
        if (back[s] == 0) continue;
        for (const int v : sets_[s].members) {
            double* to = &priced_.hop_into[size_t(v) * n_];
            for (int u = 0; u < n_; ++u) to[u] += back[s] * sets_[s].inside[u];
        }
    }
    constant_ = second_ ? now_[n_] * weight : 0.0;
    for (int v = 0; v < n_; ++v) constant_ += now_[v];
}

double Lagrangian::solve() {
    set_prices();
    if (second_) relaxation_->read_spans();
    const double bound = relaxation_->solve() - constant_;
    if (bound == never) return never;
    walk_ = relaxation_->walk();
    walk_.cost = cost_of(problem_, walk_);
    visits_.assign(n_, 0);
    for (const int w : walk_.workers) ++visits_[w];
    const double before = highest_;
    if (bound > highest_) highest_ = bound, best_ = now_;
    if (bound > before + 1e-4 * std::abs(before)) {
        failures_ = 0;
        scale_ = std::min(2.0, scale_ * 1.05);
    } else if (++failures_ >= patience) {
        failures_ = 0;
        scale_ *= 0.75;
    }
    return bound;
}

int Lagrangian::entries(const std::vector<double>& inside) const {
    int count = 0, last = -1;
    for (const int w : walk_.workers) {
        if (inside[w] > 0 && (last < 0 || inside[last] == 0)) ++count;
        last = w;
    }
    return count;
}

// The workers between two visits of one worker, and clusters whose members are visited more often than they are entered.
void Lagrangian::add_broken_sets() {
    const auto is_known = [this](const std::vector<int>& members) {
        return std::any_of(sets_.begin(), sets_.end(), [&](const Set& set) {
            return set.members.size() == members.size() &&
                   std::all_of(members.begin(), members.end(), [&](int w) { return set.inside[w] > 0; });
        });
    };
    std::vector<int> last(n_, -1);
    for (int at = 0; at < int(walk_.workers.size()) && sets_.size() < most_sets; ++at) {
        const int w = walk_.workers[at];
        if (last[w] >= 0) {
            std::vector<int> members(walk_.workers.begin() + last[w], walk_.workers.begin() + at);
            std::vector<int> sorted = members;
            std::sort(sorted.begin(), sorted.end());
            const bool is_circle = std::unique(sorted.begin(), sorted.end()) == sorted.end();
            if (is_circle && !is_known(members)) add_set(std::move(members));
        }
        last[w] = at;
    }
    std::vector<double> inside(n_, 0.0);
    for (size_t c = 0; c < clusters_.size() && sets_.size() < most_sets; ++c) {
        for (const int w : clusters_[c]) inside[w] = 1;
        const int count = entries(inside);
        for (const int w : clusters_[c]) inside[w] = 0;
        const auto is_broken = [&](int w) { return visits_[w] > std::max(1, count); };
        if (std::none_of(clusters_[c].begin(), clusters_[c].end(), is_broken)) continue;
        if (!is_known(clusters_[c])) add_set(clusters_[c]);
        clusters_.erase(clusters_.begin() + long(c--));
    }
}

double Lagrangian::second_cost() const { return second_ ? cost_of(*second_, walk_) : 0.0; }

void Lagrangian::find_offences() {
    offence_.assign(now_.size(), 0.0);
    for (int v = 0; v < n_; ++v) offence_[v] = visits_[v] - 1.0;
    if (second_) offence_[n_] = weight * (second_cost() / limit_ - 1);
    for (const Set& set : sets_) {
        const int count = entries(set.inside);
        for (size_t a = 0; a < set.members.size(); ++a) offence_[set.first + a] = visits_[set.members[a]] - count;
    }
}

bool Lagrangian::move(double aim) {
    add_broken_sets();
    find_offences();
    bool is_best = true;
    for (size_t at = 0; at < now_.size(); ++at)
        if (offence_[at] > 0 || (offence_[at] < 0 && now_[at] > 0)) is_best = false;
    if (is_best) return false;
    const double part = is_first_ ? 1.0 : fresh;
    is_first_ = false;
    double norm = 0;
    for (size_t at = 0; at < now_.size(); ++at) {
        mean_offence_[at] += part * (offence_[at] - mean_offence_[at]);
        if (mean_offence_[at] > 0 || best_[at] > 0) norm += mean_offence_[at] * mean_offence_[at];
    }
    const double step = norm > 0 ? scale_ * std::max(aim - highest_, 1e-6 * std::abs(aim)) / norm : 0.0;
    for (size_t at = 0; at < now_.size(); ++at)
        now_[at] = std::clamp(best_[at] + step * mean_offence_[at], 0.0, dearest * std::abs(aim));
    return true;
}

void Lagrangian::settle() {
    now_ = best_;
    set_prices();
    for (int u = 0; u < n_; ++u)
        for (int v = 0; v < n_; ++v) priced_.hop[size_t(u) * n_ + v] = priced_.hop_into[size_t(v) * n_ + u];
}

std::vector<double> Lagrangian::through(double limit) {
    for (int u = 0; u < n_; ++u)
        for (int v = 0; v < n_; ++v) priced_.hop[size_t(u) * n_ + v] = priced_.hop_into[size_t(v) * n_ + u];
    std::vector<double> cost = relaxation_->through(limit + constant_);
    for (double& one : cost) one -= constant_;
    return cost;
}

void Lagrangian::keep_only(const std::vector<int>& chosen) {
    const std::vector<int> at = positions(chosen, n_);
    std::vector<Set> sets = std::move(sets_);
    const std::vector<double> old[3] = {now_, best_, mean_offence_};
    std::vector<double>* const all[3] = {&now_, &best_, &mean_offence_};
    const int before = n_;
    const std::vector<int> ids = std::move(ids_);
    for (int v = 0; v < before; ++v) whole_[ids[v]] = best_[v];
    ids_.clear();
    for (const int w : chosen) ids_.push_back(ids[w]);
    n_ = int(chosen.size());
    for (int which = 0; which < 3; ++which) {
        all[which]->clear();
        for (const int w : chosen) all[which]->push_back(old[which][w]);
        all[which]->push_back(old[which][before]);
    }
    sets_.clear();
    for (Set& set : sets) {
        std::vector<int> members = renamed(set.members, at);
        if (members.size() < 2) continue;
        add_set(std::move(members));
        sets_.back().left_out = std::move(set.left_out);
        size_t to = sets_.back().first;
        for (size_t a = 0; a < set.members.size(); ++a) {
            if (at[set.members[a]] < 0) {
                sets_.back().left_out.members.push_back(ids[set.members[a]]);
                sets_.back().left_out.prices.push_back(old[1][set.first + a]);
                continue;
            }
            for (int which = 0; which < 3; ++which) (*all[which])[to] = old[which][set.first + a];
            ++to;
        }
    }
    for (std::vector<int>& cluster : clusters_) cluster = renamed(cluster, at);
    std::erase_if(clusters_, [](const std::vector<int>& cluster) { return cluster.size() < 2; });
    problem_ = problem_.only(chosen);
    if (second_) second_ = second_->only(chosen);
    priced_ = priced_.only(chosen);
    Relaxation rest = relaxation_->only(priced_, chosen);
    relaxation_.emplace(std::move(rest));
}

Prices Lagrangian::prices() const {
    Prices out(static_cast<int>(whole_.size()));
    out.workers = whole_;
    for (int v = 0; v < n_; ++v) out.workers[ids_[v]] = best_[v];
    out.second = second_ ? best_[n_] * weight / limit_ : 0.0;
    for (const Set& set : sets_) {
        Prices::Set own = set.left_out;
        for (size_t a = 0; a < set.members.size(); ++a) {
            own.members.push_back(ids_[set.members[a]]);
            own.prices.push_back(best_[set.first + a]);
        }
        if (std::any_of(own.prices.begin(), own.prices.end(), [](double price) { return price > 0; })) out.sets.push_back(own);
    }
    return out;
}

}  // namespace bloombee::plan
