// Local search over a path's workers and their order, where layers are alike.
//
// What a set of workers takes for all layers does not depend on their order, apart from what the first and the last one have
// besides. With times made convex from below, layers go to whoever takes least more for one (as in subsets.h), and the price of
// the last one given out tells of every change of the set what it saves at most: layers cost what they cost now, less `worth`
// of whoever leaves, plus that of whoever comes. So nearly all changes are dismissed by three sums, and the search goes
// through thousands of orders in the time in which chains.h goes through one. Its costs are estimates: bounds from below.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "plan/path.h"

namespace bloombee::plan {

class Routes {
  public:
    // `worth`: about what a whole path costs. At least two layers.
    Routes(const PathProblem& problem, double worth);

    // Whether an order of two workers or more is good enough: only those are judged that are estimated to cost less than `below`.
    using Judge = std::function<bool(const std::vector<int>& order)>;

    // Looks for an order that is judged to be good, in so many rounds. Each begins with an order of the round before, some of it
    // changed at random by `seed`, or from nothing, and goes down from there.
    //   order: to start from; empty: built up from nothing.
    bool find(std::vector<int> order, double below, const Judge& judge, int rounds, uint64_t seed, Budget& budget);

  private:
    enum Role { at_first, between, at_last };
    struct Piece {
        double slope;
        int count;
    };
    // Times by layers of one worker: of the first layer, and what more take.
    struct Hull {
        double one;
        std::vector<Piece> pieces;  // the least slope first
    };

    Hull hull(const std::vector<double>& times) const;
    double enter(int u, int v) const { return u < 0 ? first_[v] : v < 0 ? home_[u] : hop_[size_t(u) * n_ + v]; }
    double hops(const std::vector<int>& order) const;
    double layers(const std::vector<int>& order);
    double cost(const std::vector<int>& order) { return hops(order) + layers(order); }
    void set_price();
    double ends(const std::vector<int>& order) const;
    std::vector<int> build(int some);
    double descend(std::vector<int>& order, Budget& budget);
    bool step_by_one(std::vector<int>& order, double& now);
    bool step_by_order(std::vector<int>& order, double& now);
    void kick(std::vector<int>& order, uint64_t& state) const;

    int n_, layers_;
    double dear_;  // what a link or a layer costs that there is not
    std::vector<double> first_, home_, hop_, hop_into_;
    std::array<std::vector<Hull>, 3> hulls_;        // [roles][workers]
    std::array<std::vector<double>, 3> worth_;      // [roles][workers] what each costs, with layers paid for by the price
    std::vector<int> usable_;
    double price_ = 0;                              // of a layer
    std::vector<Piece> pieces_;
};

}  // namespace bloombee::plan
