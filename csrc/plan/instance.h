// What there is to plan, as numbers: bloombee/plan/solve/instance.py makes them from a topology and a model.
//
// Workers are 0 .. workers - 1, and the head is number `workers`. Times are seconds, sizes bytes (below 2^53, so exact). The
// arithmetic is that of bloombee/plan/cost.py, where every quantity is explained.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace bloombee::plan {

constexpr int most_workers = 4096, most_layers = 4096;
constexpr double never = std::numeric_limits<double>::infinity();

// Of M microbatches of b sequences each.
struct Point {
    int size;         // which b: a row of `Instance::sizes`
    double in_flight; // M
    double gain;      // tokens of one step
};

// What depends on b alone.
struct Size {
    std::vector<double> stage;   // [workers] of each pass
    std::vector<double> layer;   // [workers, kinds] of each layer
    std::vector<double> output;  // [workers] of a last stage besides
    double ids;                  // bytes of a frame without activations
    double raw;                  // of its activations
    double verdict;              // of the frame that goes home
};

// An access line that several links may share.
struct Line {
    double rate;
};

// What does not depend on which workers there are.
struct Common {
    int layers, kinds;
    std::vector<Point> points;
    std::vector<int32_t> kind_of;      // [layers]
    std::vector<double> layer_bytes;   // [kinds]
    std::vector<double> kv_bytes;      // [points, kinds] of a layer's KV
    double embedding_bytes, output_bytes;
    double tied_bytes;                 // of both ends, which one stage with both holds once
    double scratch_bytes, output_scratch_bytes;  // of a forward, and of the last stage's
    double loading_bytes;              // while weights are loaded, unless they are less
    double streaming_bytes;            // of a stage that streams weights: slots, and what is read into first
    std::vector<double> fractions;     // of a stage's weights that are streamed, ascending, the first is 0
    std::vector<double> ratios;        // of the codec, to choose from on each link; 0: no codec
    std::vector<Line> lines;
    int cores = 0;                     // that all share; 0: each has its own
    double hop_cpu = 0;
    bool is_computing = true;
};

struct Instance : Common {
    // With no workers but those of `chosen`, in that order.
    Instance only(const std::vector<int>& chosen) const;

    int workers;
    std::vector<Size> sizes;           // the last one is b = 1
    std::vector<double> limit;         // [workers] of memory; inf: none
    std::vector<double> stream;        // [workers] bytes per second; 0: it cannot
    std::vector<double> bandwidth;     // [workers + 1, workers + 1] from row to column; 0: no link
    std::vector<double> latency;       // [workers + 1, workers + 1]
    std::vector<double> encode, decode;  // [workers] bytes per second
    std::vector<int32_t> rank;         // [workers] in a fixed order; empty: any order
    std::vector<int32_t> up, down;     // [workers + 1] the access line of each; -1: its own
};

// One pipeline. `streamed` and `codec` are indices of fractions and ratios; links are those between stages.
struct Chain {
    std::vector<int> workers, layers, streamed, codec;
};

}  // namespace bloombee::plan
