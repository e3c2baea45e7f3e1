// The cheapest way through workers and layers: elementary paths, and bounds on them.
//
// A path visits workers one after another, gives each a span of layers, and ends when all layers are given out. It costs the
// link into each worker, its span, and the link home. No worker is visited twice.
//
// Theory of operation. Without that last rule the cheapest walk is found by a dynamic program over (layers given out,
// worker): the Relaxation. Prices on what walks do and paths do not make that bound tight: the Lagrangian (Held and Karp 1971;
// Christofides, Mingozzi and Toth 1981). Labels - partial paths - are then extended layer by layer; one whose cost so far and
// relaxed rest are no better than what is known goes no further. If none had to be left out for lack of width, the best path is
// the optimum; else the best of those left out is still a bound.
//
// Where workers have a fixed order a walk cannot return, and the relaxation alone is exact.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "plan/instance.h"

namespace bloombee::plan {

// What a search may use. A step is the extension of one label, or as much work of a relaxation.
class Budget {
  public:
    Budget(double seconds, int64_t steps)
        : steps_(steps), steps_left_(steps), start_(Clock::now()), deadline_(deadline(seconds)) {}

    void spend(int64_t steps) {
        steps_left_ -= steps;
        spent_ += steps;
    }
    bool is_spent() const { return steps_left_ <= 0 || Clock::now() >= deadline_; }
    int64_t spent() const { return spent_; }
    // The part of it that is left, of time or of steps.
    double left() const {
        const double steps = double(steps_left_) / double(std::max<int64_t>(steps_, 1));
        if (deadline_ == Clock::time_point::max()) return std::max(0.0, steps);
        const double whole = std::max(1e-9, std::chrono::duration<double>(deadline_ - start_).count());
        return std::max(0.0, std::min(steps, std::chrono::duration<double>(deadline_ - Clock::now()).count() / whole));
    }
    // A part of what is left.
    Budget share(double part) const {
        Budget other = *this;
        other.spent_ = 0;
        if (part < 1) {
            other.steps_left_ = static_cast<int64_t>(part * static_cast<double>(steps_left_));
            if (deadline_ != Clock::time_point::max()) {
                const auto now = Clock::now();
                other.deadline_ = now + std::chrono::duration_cast<Clock::duration>((deadline_ - now) * part);
            }
        }
        return other;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static Clock::time_point deadline(double seconds) {
        if (!(seconds < 1e9)) return Clock::time_point::max();
        return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    }

    int64_t steps_, steps_left_, spent_ = 0;
    Clock::time_point start_, deadline_;
};

// Time of worker w on layers [i, i + k): spans that end before the last layer, and those that end with it. Where all layers
// are alike only the first layer is special (the embedding lies there), so two rows are enough; else there are as many as layers.
struct Spans {
    Spans(int workers, int layers, int rows)
        : layers(layers), rows(rows), middle(size_t(workers) * rows * (layers + 1), never),
          tail(size_t(workers) * layers, never), reach(size_t(workers) * rows, 0) {}

    size_t row(int w, int i) const { return size_t(w) * rows + (i < rows ? i : 1); }
    double* from(int w, int i) { return &middle[row(w, i) * (layers + 1)]; }
    const double* from(int w, int i) const { return &middle[row(w, i) * (layers + 1)]; }
    double& to_end(int w, int i) { return tail[size_t(w) * layers + i]; }
    double to_end(int w, int i) const { return tail[size_t(w) * layers + i]; }
    // Longest middle span from i.
    int longest(int w, int i) const { return std::min(reach[row(w, i)], layers - i - 1); }

    // Longest span from i, a last one included.
    int any(int w, int i) const { return to_end(w, i) < never ? layers - i : longest(w, i); }

    int layers, rows;
    std::vector<double> middle;  // [workers, rows, layers + 1]
    std::vector<double> tail;    // [workers, layers]
    std::vector<int> reach;      // [workers, rows]
};

struct PathProblem {
    PathProblem(int workers, int layers, int rows)
        : workers(workers), layers(layers), spans(workers, layers, rows), first(workers, never), home(workers, never),
          hop(size_t(workers) * workers, never), hop_into(hop) {}

    void set_hop(int u, int v, double seconds) {
        hop[size_t(u) * workers + v] = hop_into[size_t(v) * workers + u] = seconds;
    }
    double hop_of(int u, int v) const { return hop[size_t(u) * workers + v]; }
    // Only the workers of `chosen`, in that order.
    PathProblem only(const std::vector<int>& chosen) const;

    int workers, layers;
    Spans spans;
    std::vector<double> first, home;   // [workers] from the head, to the head
    std::vector<double> hop, hop_into; // [workers, workers] from row to column, and the other way round
};

struct Path {
    double cost = never;
    std::vector<int> workers, layers;
};

// What a Lagrangian (lagrangian.h) ended with, for the next one to start from: it only speeds things up.
struct Prices {
    struct Set {
        std::vector<int> members;
        std::vector<double> prices;  // one each
    };
    explicit Prices(int count) : workers(count, 0.0) {}

    // For costs of which one second is worth `factor` of one here, and second costs at a price of their own.
    Prices scaled(double factor, double of_second) const;

    bool is_empty() const {
        return sets.empty() && second == 0 && std::all_of(workers.begin(), workers.end(), [](double price) { return price == 0; });
    }

    std::vector<double> workers;
    double second = 0;
    std::vector<Set> sets;
};

struct Found {
    Path path;       // of a cost below what was asked, if there is one
    double bound;    // no path costs less, up to what was asked
    bool complete;   // nothing was left out: `path` is the best, or there is none below what was asked
    std::vector<int> walk;  // workers in the order of the last walk that is no path; none: there was none
};

// How far a search goes.
struct Effort {
    int turns;    // of the Lagrangian, at most
    int descents; // of local search; 0: paths are only what walks come to
    int width;    // most labels for each number of layers in the widest try; 0: none, what is left stays open
};

// The cheapest path below `below`.
//   second, second_limit: costs of the same paths that must not add up to more; null: none.
//   prices: to start from, and where the best ones are left.
Found cheapest(const PathProblem& problem, double below, Effort effort, Budget& budget, Prices& prices,
               const PathProblem* second = nullptr, double second_limit = never);

// The best path that visits some of `order`, in that order; no workers: there is none.
Path along(const PathProblem& problem, const std::vector<int>& order);

// Without the rule that no worker is visited twice: a bound, exact in a fixed order.
double relaxed(const PathProblem& problem);

}  // namespace bloombee::plan
