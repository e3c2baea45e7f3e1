// Times and bytes of stages and links at one operating point, and what whole chains cost: the arithmetic of plan/cost.py.
#pragma once

#include <vector>

#include "plan/instance.h"
#include "plan/path.h"

namespace bloombee::plan {

struct LinkTimes {
    double pass;  // from handing a microbatch over to having it
    double busy;  // the longest of what passes one microbatch at a time
};

// Of links, for one size of microbatches.
class LinkTable {
  public:
    LinkTable(const Instance& instance, int size);

    LinkTimes first(int w) const { return first_[w]; }
    LinkTimes home(int w) const { return home_[w]; }
    LinkTimes hop(int u, int v, int codec) const { return hops_[(size_t(codec) * n_ + u) * n_ + v]; }
    double frame_bytes(int codec) const;
    // The codec with the least pass among those whose busy time is at most `cap`; -1: none.
    int best_codec(int u, int v, double cap) const;

  private:
    LinkTimes between(int u, int v, double bytes, double encode, double decode) const;

    const Instance& instance_;
    const Size& size_;
    int n_, codecs_;
    std::vector<LinkTimes> first_, home_, hops_;
};

// Seconds of layers [0, i) by size of microbatch and worker.
class LayerTable {
  public:
    explicit LayerTable(const Instance& instance);
    double between(int size, int w, int i, int j) const {
        const double* sums = &sums_[(size_t(size) * workers_ + w) * (layers_ + 1)];
        return sums[j] - sums[i];
    }

  private:
    int workers_, layers_;
    std::vector<double> sums_;  // [sizes, workers, layers + 1]
};

// Of stages, at one operating point; each streams the least part of its weights that makes it fit.
class StageTable {
  public:
    StageTable(const Instance& instance, const LayerTable& layers, int point);

    // The least fraction with which layers [i, j) fit worker w; -1: none does.
    int placement(int w, int i, int j) const;
    double busy(int size, int w, int i, int j, int placement) const;
    // How many bytes of memory are missing even where all is streamed that may be; <= 0: it fits.
    double short_bytes(int w, int i, int j) const;

  private:
    double weights(int i, int j) const { return weights_[j] - weights_[i]; }
    double memory(int i, int j, double streamed) const;

    const Instance& instance_;
    const LayerTable& layers_;
    std::vector<double> weights_, kv_;           // sums over the layers before each
};

// Spans of a StageTable as times at a size; inf where nothing fits.
Spans spans_of(const Instance& instance, const StageTable& stages, int size);
// The part of `timed` that takes at most `cap` in `own`, of workers that are allowed; inf elsewhere.
Spans capped(const Spans& timed, const Spans& own, double cap, const std::vector<bool>& allowed);

// Step of a chain at a point: max(M T, L + W).
double step_of(const Instance& instance, const StageTable& stages, const LinkTable& links, int point, const Chain& chain);

}  // namespace bloombee::plan
