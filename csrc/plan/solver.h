// The best chain of workers over all operating points, with a bound: see path.h for one point and one cap.
//
// What is minimised is step / gain: seconds per token of all sequences together. For a value V a point can do better only with
// every stage and link busy for less than V gain / M (the cap) and a loop below V gain, so each try is a cheapest path under a
// cap; a path found lowers V, a bound on the path raises what is proven of the point.
#pragma once

#include <memory>
#include <vector>

#include "plan/instance.h"
#include "plan/path.h"
#include "plan/tables.h"

namespace bloombee::plan {

struct Solution {
    bool found = false;
    int point = -1;
    double value = never;  // step / gain, or the loop at b = 1
    double bound = 0;      // nothing is below this
    bool proven = false;   // value and bound are one, to 1e-9
    Chain chain;
};

class Solver {
  public:
    Solver(Instance instance, Budget budget);

    // Most tokens per second, in steps of at most `step_limit`.
    //   allowed: [workers] others are left out. width: of the widest search. share: of what is left of the budget.
    Solution most_tokens(double step_limit, const std::vector<bool>& allowed, int width, double share);
    // Least loop at b = 1 of all chains whose value at some point is at most `value`.
    Solution least_alone(double value, const std::vector<bool>& allowed, int width, double share);
    // Step / gain of a chain at a point.
    double value_of(int point, const Chain& chain);
    // How many layers each worker could hold, alone.
    std::vector<int> room(int point);
    // Of memory for layers [i, j), even where all is streamed that may be; <= 0: it fits.
    double short_bytes(int point, int w, int i, int j) { return stages(point).short_bytes(w, i, j); }
    // Most layers times tokens per second of each worker, at any point.
    std::vector<double> layer_rates();
    double left() const { return budget_.left(); }
    int64_t steps() const { return budget_.spent(); }
    const Instance& instance() const { return instance_; }

  private:
    const LinkTable& links(int size);
    const StageTable& stages(int point);
    const Spans& spans(int point, int size);
    PathProblem problem(int point, double cap, int timed_size, const std::vector<bool>& allowed);
    Chain chain_of(int point, double cap, const Path& path);
    bool attempt(int point, double value, double step_limit, Effort effort, Budget& budget);
    bool take(int point, double cap, const Path& path, double step_limit);
    bool is_alike() const;
    bool reroute(int point, double value, double step_limit, const std::vector<int>& start, int rounds, Budget& budget);
    void scout(int point, double step_limit, int rounds, Budget& budget);
    void scout_all(double step_limit, Budget& budget);
    void find(int point, double step_limit, Budget& budget);
    void improve(int point, double step_limit, Effort effort, Budget& budget);
    void raise(int point, double step_limit, Effort effort, Budget& budget);
    template <class Work>
    void work(const Budget& budget, Work work);
    void alone_at(int point, double value, const std::vector<bool>& allowed, Effort effort, Prices& prices, Budget& budget);
    double alone_of(int point, const Chain& chain);
    int roomiest(int size) const;
    void bound_size(int size, double step_limit);
    double least_bound(int size) const;
    void lift_size(int size, double step_limit);
    Solution finish(const Budget& used);
    Solver* part_of(const std::vector<bool>& allowed);
    template <class Search>
    Solution in_part(Search search);

    Instance instance_;
    Budget budget_;
    std::unique_ptr<Solver> part_;  // of few workers, the last that were asked for
    std::vector<int> part_ids_;     // [workers of the part] their numbers here
    LayerTable layers_;
    std::vector<std::unique_ptr<LinkTable>> links_;
    std::vector<std::unique_ptr<StageTable>> stages_;
    std::vector<std::unique_ptr<Spans>> spans_, alone_spans_;  // [points] at their own size, at b = 1
    std::vector<Prices> prices_;  // [points] from the last search
    std::vector<std::vector<int>> walks_;  // [points] that the last search ended with, and no plan was tried from yet
    int priced_ = -1;             // the point whose prices are the latest
    std::vector<bool> allowed_;
    std::vector<double> bounds_;  // [points] of value
    std::vector<double> lows_;    // [points] below which tries found nothing; proves nothing
    double loop_ = 0;             // of the best, over its gain
    uint64_t seed_ = 0;           // of the next round of Routes
    std::vector<double> points_;  // [points] those of the last most_tokens()
    Solution best_, most_;        // of the search now, of the last most_tokens()
};

}  // namespace bloombee::plan
