// Bounds on elementary paths: cheapest walks, with prices on what no path does.
//
// Prices are put on three kinds of rules that every path keeps and walks break:
//   - a worker is visited at most once;
//   - a worker of a set S is visited no more often than S is entered (subtour elimination; S the workers between two visits of
//     one worker, or a cluster of near neighbours: else half a walk that circles twice in one region and half a walk that does in
//     another would do for a path through both);
//   - where there are second costs: they stay below their limit.
// For any prices >= 0 the cheapest walk of the problem with prices in its links and spans, less the constants, costs no more than
// any path (Lagrange). The prices rise along an average of the last walks' offences, from the best ones so far (the volume
// algorithm: Barahona and Anbil 2000), and sets are added when a walk breaks their rule (relax and cut: Lucena 2005).
#pragma once

#include <optional>
#include <vector>

#include "plan/path.h"
#include "plan/relaxation.h"

namespace bloombee::plan {

class Lagrangian {
  public:
    // worth: about what a path costs; inf: not known, then prices start from nothing.
    Lagrangian(const PathProblem& problem, const PathProblem* second, double limit, const Prices& start, double worth);
    Lagrangian(const Lagrangian&) = delete;
    Lagrangian& operator=(const Lagrangian&) = delete;

    // The bound of the prices now; inf: there is no walk.
    double solve();
    // The walk that it found.
    const Path& walk() const { return walk_; }
    const std::vector<int>& visits() const { return visits_; }
    // Moves the prices so that the bound comes closer to `aim`. False: the walk is a best path, if it keeps the second limit.
    bool move(double aim);
    // Moves have become too small to matter.
    bool is_still() const { return scale_ < 0.02; }
    // Back to the best prices, as Labels want it.
    void settle();
    // Of the prices now: every path that keeps the limit costs no less than its cost in this problem, less the constant.
    const PathProblem& priced() const { return priced_; }
    double constant() const { return constant_; }
    // Cheapest walks through each worker; see Relaxation. To be asked after solve().
    std::vector<double> through(double limit);
    // Leaves all other workers out.
    void keep_only(const std::vector<int>& chosen);
    const PathProblem& problem() const { return problem_; }
    const PathProblem* second() const { return second_ ? &*second_ : nullptr; }
    int64_t steps() const { return relaxation_->steps(); }
    // The number of each of its workers in the problem that it began with.
    const std::vector<int>& ids() const { return ids_; }
    // The best prices, of those that were left out what they were then.
    Prices prices() const;

  private:
    struct Set {
        std::vector<int> members;
        std::vector<double> inside;  // [workers] 1 or 0
        size_t first;                // of its members' prices, one each
        Prices::Set left_out;
    };

    void add_set(std::vector<int> members);
    void set_prices();
    void add_broken_sets();
    int entries(const std::vector<double>& inside) const;
    double second_cost() const;
    void find_offences();

    PathProblem problem_, priced_;
    std::optional<PathProblem> second_;
    std::optional<Relaxation> relaxation_;
    double limit_, constant_ = 0;
    int n_;
    std::vector<int> ids_;
    std::vector<double> whole_;                   // [workers it began with] of those that were left out, their prices
    std::vector<std::vector<int>> clusters_;      // not yet among the sets
    std::vector<Set> sets_;
    // [workers, 1 (of the second costs), members of sets...]
    std::vector<double> now_, best_, offence_, mean_offence_;
    Path walk_;
    std::vector<int> visits_;
    double highest_ = -never, scale_ = 1.0;
    int failures_ = 0;
    bool is_first_ = true;
};

double cost_of(const PathProblem& p, const Path& path);
// All times of `own` and `part` of those of `other`, which has the same paths.
void mix(PathProblem& to, const PathProblem& own, const PathProblem& other, double part);

}  // namespace bloombee::plan
