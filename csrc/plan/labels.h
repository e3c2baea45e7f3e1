// Partial paths, extended layer by layer: see path.h.
//
// A label remembers which of some *watched* workers it has visited; others it may visit again. The cheapest walk under that rule is
// a bound, and the best path if it visits none twice; else the workers that it visits twice are watched as well (decremental
// state space relaxation: Righini and Salani 2008). A walk counts what it costs with prices or without, whichever is more.
#pragma once

#include <vector>

#include "plan/path.h"
#include "plan/relaxation.h"

namespace bloombee::plan {

class Labels {
  public:
    // priced, constant: of a Lagrangian. Second costs only where there are any.
    Labels(const PathProblem& problem, const PathProblem& priced, double constant, const PathProblem* second,
           double second_limit);

    // Looks for a walk below `below`. Returns the least that one through what was left out could cost; inf: nothing was.
    //   strict: no worker twice, watched or not; what is left out then says nothing.
    double search(double below, int width, bool strict, Budget& budget);
    // The walk found, and what it counts.
    const Path& best() const { return best_; }
    double counts() const { return counts_; }
    // False: too many.
    bool watch(int w);

  private:
    struct Label {
        double cost;    // with prices so far, less the constant
        double bound;   // cost and the relaxed rest
        double plain;   // without prices
        double second;
        int32_t parent;
        int16_t worker;
        int16_t count;  // layers that worker has
        uint64_t seen;  // watched workers, as bits
    };
    using Bucket = std::vector<int32_t>;

    void start();
    void extend(int32_t index, int i);
    void enter(int32_t parent, uint64_t seen, int i, int v, double cost, double plain, double second);
    void push(const Label& label, int i);
    void finish(int32_t parent, int v, int i, double plain);
    void trim(Bucket& bucket, size_t most);
    bool is_on_way(int32_t index, int v) const;
    void drop_dominated(Bucket& bucket);
    bool dominates(int32_t a, int32_t b) const;

    const PathProblem &problem_, &priced_;
    double constant_;
    const PathProblem* second_;
    double second_limit_;
    Relaxation rest_, second_rest_;
    size_t width_ = 0;
    double below_ = never, left_out_ = never, counts_ = never;
    std::vector<Label> labels_;
    std::vector<Bucket> buckets_;    // by layers given out
    std::vector<uint64_t> bit_;      // [workers] of each that is watched, 0 of others
    int watched_ = 0;
    bool strict_ = false;

    Path best_;
};

}  // namespace bloombee::plan
