#include "plan/clusters.h"

#include <algorithm>
#include <numeric>

namespace bloombee::plan {
namespace {

struct Edge {
    double length;
    int a, b;
};

// Prim's.
std::vector<Edge> shortest_tree(const PathProblem& p, const std::vector<int>& workers) {
    std::vector<Edge> tree;
    std::vector<Edge> nearest;  // of each that is still outside
    for (size_t a = 1; a < workers.size(); ++a) nearest.push_back({never, workers[0], workers[a]});
    for (int last = workers[0]; !nearest.empty();) {
        size_t best = 0;
        for (size_t at = 0; at < nearest.size(); ++at) {
            Edge& edge = nearest[at];
            const double length = std::min(p.hop_of(last, edge.b), p.hop_of(edge.b, last));
            if (length < edge.length) edge.length = length, edge.a = last;
            if (edge.length < nearest[best].length) best = at;
        }
        if (nearest[best].length < never) tree.push_back(nearest[best]);
        last = nearest[best].b;
        nearest.erase(nearest.begin() + long(best));
    }
    return tree;
}

}  // namespace

std::vector<std::vector<int>> clusters_of(const PathProblem& problem) {
    std::vector<int> workers;
    for (int w = 0; w < problem.workers; ++w)
        if (problem.layers > 1 && problem.spans.reach[problem.spans.row(w, 1)] > 0) workers.push_back(w);
    if (workers.size() < 3) return {};
    std::vector<Edge> tree = shortest_tree(problem, workers);
    std::stable_sort(tree.begin(), tree.end(), [](const Edge& a, const Edge& b) { return a.length < b.length; });
    std::vector<int> of(problem.workers);
    std::iota(of.begin(), of.end(), 0);
    std::vector<std::vector<int>> groups(problem.workers), found;
    for (const int w : workers) groups[w] = {w};
    for (const Edge& edge : tree) {
        std::vector<int>&into = groups[of[edge.a]], &from = groups[of[edge.b]];
        for (const int w : from) of[w] = of[edge.a];
        into.insert(into.end(), from.begin(), from.end());
        from.clear();
        if (into.size() < workers.size()) found.push_back(into);
    }
    return found;
}

}  // namespace bloombee::plan
