#include "plan/routes.h"

#include <algorithm>

#include "plan/draw.h"

namespace bloombee::plan {
namespace {

// After so many rounds one begins anew: with another worker, so in another region.
constexpr int rounds_between = 10;

std::vector<double> without_never(const std::vector<double>& values, double dear) {
    std::vector<double> out = values;
    for (double& value : out) value = value < dear ? value : dear;
    return out;
}

}  // namespace

Routes::Routes(const PathProblem& p, double worth)
    : n_(p.workers), layers_(p.layers), dear_(4 * worth + 1e-9), first_(without_never(p.first, dear_)),
      home_(without_never(p.home, dear_)), hop_(without_never(p.hop, dear_)), hop_into_(without_never(p.hop_into, dear_)) {
    std::vector<double> times;
    for (int w = 0; w < n_; ++w) {
        times.assign(p.spans.from(w, 0) + 1, p.spans.from(w, 0) + 1 + p.spans.longest(w, 0));
        hulls_[at_first].push_back(hull(times));
        times.assign(p.spans.from(w, 1) + 1, p.spans.from(w, 1) + 1 + p.spans.longest(w, 1));
        hulls_[between].push_back(hull(times));
        times.clear();
        for (int i = layers_ - 1; i > 0 && p.spans.to_end(w, i) < never; --i) times.push_back(p.spans.to_end(w, i));
        hulls_[at_last].push_back(hull(times));
        const bool any = hulls_[at_first][w].one < dear_ || hulls_[between][w].one < dear_ || hulls_[at_last][w].one < dear_;
        if (any) usable_.push_back(w);
    }
    for (std::vector<double>& worth_of : worth_) worth_of.resize(n_);
}

// Of the times of 1, 2, ... layers, the lower convex hull.
Routes::Hull Routes::hull(const std::vector<double>& times) const {
    Hull out{dear_, {}};
    if (times.empty()) return out;
    out.one = std::min(times[0], dear_);
    for (size_t k = 1; k < times.size(); ++k) {
        Piece last{times[k] - times[k - 1], 1};
        while (!out.pieces.empty() && out.pieces.back().slope >= last.slope) {
            const Piece& before = out.pieces.back();
            const int count = before.count + last.count;
            last = {(before.slope * before.count + last.slope * last.count) / count, count};
            out.pieces.pop_back();
        }
        out.pieces.push_back(last);
    }
    return out;
}

double Routes::hops(const std::vector<int>& order) const {
    double sum = first_[order.front()] + home_[order.back()];
    for (size_t p = 1; p < order.size(); ++p) sum += hop_[size_t(order[p - 1]) * n_ + order[p]];
    return sum;
}

// Of two workers or more; leaves the price of the last layer given out.
double Routes::layers(const std::vector<int>& order) {
    const size_t m = order.size();
    int left = layers_ - int(m);
    if (left < 0) return never;
    double sum = 0;
    pieces_.clear();
    for (size_t p = 0; p < m; ++p) {
        const Hull& hull = hulls_[p == 0 ? at_first : p + 1 == m ? at_last : between][order[p]];
        sum += hull.one;
        pieces_.insert(pieces_.end(), hull.pieces.begin(), hull.pieces.end());
    }
    std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.slope < b.slope; });
    const double missing = dear_ / layers_;
    price_ = pieces_.empty() ? missing : pieces_.front().slope;
    for (const Piece& piece : pieces_) {
        if (left == 0) break;
        const int count = std::min(left, piece.count);
        sum += count * piece.slope;
        price_ = piece.slope;
        left -= count;
    }
    if (left > 0) price_ = missing;
    return sum + left * missing;
}

void Routes::set_price() {
    for (const Role role : {at_first, between, at_last})
        for (const int w : usable_) {
            const Hull& hull = hulls_[role][w];
            double worth = hull.one - price_;
            for (const Piece& piece : hull.pieces) {
                if (piece.slope >= price_) break;
                worth += piece.count * (piece.slope - price_);
            }
            worth_[role][w] = worth;
        }
}

// What the first and the last worker are worth as such, more than between others.
double Routes::ends(const std::vector<int>& order) const {
    const int first = order.front(), last = order.back();
    return worth_[at_first][first] - worth_[between][first] + worth_[at_last][last] - worth_[between][last];
}

// The best way to insert, replace or remove one worker, if it helps.
bool Routes::step_by_one(std::vector<int>& order, double& now) {
    const int m = int(order.size());
    std::vector<bool> used(n_, false);
    for (const int w : order) used[w] = true;
    double best = now * (1 - 1e-9);
    std::vector<int> best_order, other;
    const auto try_it = [&](int p, int next, int w) {
        other.assign(order.begin(), order.begin() + p);
        if (w >= 0) other.push_back(w);
        other.insert(other.end(), order.begin() + next, order.end());
        const double then = cost(other);
        if (then < best) best = then, best_order = other;
    };
    for (int p = 0; p <= m; ++p)
        for (int next = p; next <= std::min(m, p + 1); ++next) {
            const int a = p > 0 ? order[p - 1] : -1, b = next < m ? order[next] : -1;
            const Role role = p == 0 ? at_first : next == m ? at_last : between;
            double before = now;  // without the links and the worth of what changes
            for (int s = p; s <= next; ++s) before -= enter(s > 0 ? order[s - 1] : -1, s < m ? order[s] : -1);
            if (next > p) before -= worth_[role][order[p]];
            if (next == p && p == 0) before += worth_[between][b] - worth_[at_first][b];
            if (next == p && p == m) before += worth_[between][a] - worth_[at_last][a];
            const double* in = a < 0 ? first_.data() : &hop_[size_t(a) * n_];
            const double* out = b < 0 ? home_.data() : &hop_into_[size_t(b) * n_];
            for (const int w : usable_)
                if (before + in[w] + out[w] + worth_[role][w] < best && !used[w]) try_it(p, next, w);
            if (next == p || m == 2) continue;
            double without = before + enter(a, b);
            if (p == 0) without += worth_[at_first][b] - worth_[between][b];
            if (next == m) without += worth_[at_last][a] - worth_[between][a];
            if (without < best) try_it(p, next, -1);
        }
    if (best_order.empty()) return false;
    order = best_order;
    now = best;
    return true;
}

// The first swap, reversal or move of up to three that helps.
bool Routes::step_by_order(std::vector<int>& order, double& now) {
    const int m = int(order.size());
    const double links = hops(order), at_ends = ends(order);
    std::vector<int> other;
    const auto is_better = [&] {
        if (now - links + hops(other) - at_ends + ends(other) >= now * (1 - 1e-9)) return false;
        const double then = cost(other);
        if (!(then < now * (1 - 1e-9))) return false;
        order = other;
        now = then;
        return true;
    };
    for (int a = 0; a < m; ++a)
        for (int b = a + 1; b < m; ++b) {
            other = order;
            std::swap(other[a], other[b]);
            if (is_better()) return true;
            if (b == a + 1) continue;
            other = order;
            std::reverse(other.begin() + a, other.begin() + b + 1);
            if (is_better()) return true;
            for (int count = 1; count <= 3 && count <= b - a; ++count) {
                other = order;
                std::rotate(other.begin() + a, other.begin() + a + count, other.begin() + b + 1);
                if (is_better()) return true;
                other = order;
                std::rotate(other.begin() + a, other.begin() + b + 1 - count, other.begin() + b + 1);
                if (is_better()) return true;
            }
        }
    return false;
}

double Routes::descend(std::vector<int>& order, Budget& budget) {
    double now = cost(order);
    do {
        budget.spend(int64_t(order.size()) * int64_t(usable_.size()) / 4 + 1);
        if (budget.is_spent()) break;
        now = cost(order);
        set_price();
    } while (step_by_one(order, now) || step_by_order(order, now));
    return now;
}

// The best two with `some` among them, or of all, and what makes them better.
std::vector<int> Routes::build(int some) {
    std::vector<int> best;
    double least = never;
    price_ = dear_ / layers_;
    set_price();
    const auto look = [&](int a, int b) {
        if (a == b) return;
        const double cost = first_[a] + hop_[size_t(a) * n_ + b] + home_[b] + worth_[at_first][a] + worth_[at_last][b];
        if (cost < least) least = cost, best = {a, b};
    };
    for (const int a : usable_) {
        if (some < 0)
            for (const int b : usable_) look(a, b);
        else
            look(a, some), look(some, a);
    }
    return best;
}

// Takes some out, puts another one in, moves some, or begins with another one.
void Routes::kick(std::vector<int>& order, uint64_t& state) const {
    const auto below = [&state](size_t count) { return size_t(draw(state) % count); };
    for (int turn = 1 + int(below(2)); turn > 0; --turn) {
        const size_t m = order.size(), p = below(m);
        const int w = usable_[below(usable_.size())];
        const bool is_used = std::find(order.begin(), order.end(), w) != order.end();
        const long count = long(std::min(1 + below(3), m - p));
        switch (below(5)) {
        case 0:
            if (m > size_t(count) + 1) order.erase(order.begin() + long(p), order.begin() + long(p) + count);
            break;
        case 1:
            if (!is_used) order[p] = w;
            break;
        case 2:
            if (!is_used) order.insert(order.begin() + long(p), w);
            break;
        case 3:
            std::rotate(order.begin(), order.begin() + long(p), order.end());  // (a ring that begins elsewhere)
            break;
        default: {
            const std::vector<int> some(order.begin() + long(p), order.begin() + long(p) + count);
            order.erase(order.begin() + long(p), order.begin() + long(p) + count);
            order.insert(order.begin() + long(below(order.size() + 1)), some.begin(), some.end());
        }
        }
    }
}

bool Routes::find(std::vector<int> order, double below, const Judge& judge, int rounds, uint64_t seed, Budget& budget) {
    if (usable_.size() < 2 || layers_ < 2) return false;
    double now = never;
    std::vector<int> other = order.size() < 2 ? build(-1) : order;
    for (int turn = 0; turn <= rounds; ++turn) {
        const bool is_new = turn % rounds_between == 0;
        if (turn > 0) {
            other = is_new ? build(usable_[size_t(draw(seed) % usable_.size())]) : order;
            if (!is_new) kick(other, seed);
        }
        double then = descend(other, budget);
        if (then < below) {
            if (judge(other)) return true;
            then = below;
        }
        if (then < now || is_new) now = then, order = other;
        if (budget.is_spent()) return false;
    }
    return false;
}

}  // namespace bloombee::plan
