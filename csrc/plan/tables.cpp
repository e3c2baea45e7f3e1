#include "plan/tables.h"

#include <algorithm>
#include <cmath>

namespace bloombee::plan {

LinkTable::LinkTable(const Instance& instance, int size)
    : instance_(instance), size_(instance.sizes[size]), n_(instance.workers), codecs_(int(instance.ratios.size())), first_(n_),
      home_(n_), hops_(size_t(codecs_) * n_ * n_) {
    for (int w = 0; w < n_; ++w) {
        first_[w] = between(n_, w, size_.ids, 0, 0);
        home_[w] = between(w, n_, size_.verdict, 0, 0);
    }
    for (int c = 0; c < codecs_; ++c) {
        const double bytes = frame_bytes(c);
        const bool coded = instance.ratios[c] > 0;
        for (int u = 0; u < n_; ++u) {
            const double encode = coded ? size_.raw / instance.encode[u] : 0.0;
            for (int v = 0; v < n_; ++v)
                hops_[(size_t(c) * n_ + u) * n_ + v] =
                    between(u, v, bytes, encode, coded ? size_.raw / instance.decode[v] : 0.0);
        }
    }
}

double LinkTable::frame_bytes(int codec) const {
    const double ratio = instance_.ratios[codec];
    return size_.ids + (ratio > 0 ? size_.raw * ratio : size_.raw);
}

LinkTimes LinkTable::between(int u, int v, double bytes, double encode, double decode) const {
    const size_t at = size_t(u) * (n_ + 1) + v;
    const double rate = instance_.bandwidth[at];
    if (rate == 0 || u == v) return {never, never};
    const double wire = bytes / rate;
    return {encode + wire + instance_.latency[at] + decode, std::max(wire, std::max(encode, decode))};
}

int LinkTable::best_codec(int u, int v, double cap) const {
    int best = -1;
    double pass = never;
    for (int c = 0; c < codecs_; ++c) {
        const LinkTimes times = hop(u, v, c);
        if (times.busy <= cap && times.pass < pass) best = c, pass = times.pass;
    }
    return best;
}

LayerTable::LayerTable(const Instance& instance)
    : workers_(instance.workers), layers_(instance.layers), sums_(instance.sizes.size() * workers_ * (layers_ + 1), 0.0) {
    double* sums = sums_.data();
    for (const Size& size : instance.sizes)
        for (int w = 0; w < workers_; ++w, sums += layers_ + 1)
            for (int i = 0; i < layers_; ++i)
                sums[i + 1] = sums[i] + size.layer[size_t(w) * instance.kinds + instance.kind_of[i]];
}

StageTable::StageTable(const Instance& instance, const LayerTable& layers, int point)
    : instance_(instance), layers_(layers), weights_(instance.layers + 1, 0.0), kv_(weights_) {
    for (int i = 0; i < instance.layers; ++i) {
        weights_[i + 1] = weights_[i] + instance.layer_bytes[instance.kind_of[i]];
        kv_[i + 1] = kv_[i] + instance.kv_bytes[size_t(point) * instance.kinds + instance.kind_of[i]];
    }
}

// plan/memory.py stage_memory.
double StageTable::memory(int i, int j, double streamed) const {
    const bool first = i == 0, last = j == instance_.layers;
    const double whole = weights(i, j) + (first ? instance_.embedding_bytes : 0) + (last ? instance_.output_bytes : 0) -
                         (first && last ? instance_.tied_bytes : 0);
    const double forward = last ? instance_.output_scratch_bytes : instance_.scratch_bytes;
    const double scratch = std::max(forward, std::min(instance_.loading_bytes, whole));
    const double resident = std::max(0.0, whole - streamed) + (streamed > 0 ? instance_.streaming_bytes : 0);
    return resident + kv_[j] - kv_[i] + scratch;
}

int StageTable::placement(int w, int i, int j) const {
    const int last = instance_.stream[w] > 0 ? int(instance_.fractions.size()) - 1 : 0;
    for (int p = 0; p <= last; ++p)
        if (memory(i, j, std::floor(instance_.fractions[p] * weights(i, j))) <= instance_.limit[w]) return p;
    return -1;
}

double StageTable::short_bytes(int w, int i, int j) const {
    const double most = instance_.stream[w] > 0 ? instance_.fractions.back() : 0.0;
    return memory(i, j, std::floor(most * weights(i, j))) - instance_.limit[w];
}

double StageTable::busy(int size, int w, int i, int j, int placement) const {
    double compute = instance_.sizes[size].stage[w] + layers_.between(size, w, i, j);
    if (j == instance_.layers) compute += instance_.sizes[size].output[w];
    const double streamed = std::floor(instance_.fractions[placement] * weights(i, j));
    return streamed > 0 ? std::max(compute, streamed / instance_.stream[w]) : compute;
}

Spans spans_of(const Instance& instance, const StageTable& stages, int size) {
    const int layers = instance.layers;
    Spans spans(instance.workers, layers, instance.kinds == 1 ? 2 : layers);
    const auto seconds = [&](int w, int i, int j) {
        const int placement = stages.placement(w, i, j);
        return placement < 0 ? never : stages.busy(size, w, i, j, placement);
    };
    for (int w = 0; w < instance.workers; ++w) {
        for (int i = 0; i < std::min(layers, spans.rows); ++i) {
            int& reach = spans.reach[spans.row(w, i)];
            for (int k = 1; i + k < layers; ++k) {
                if ((spans.from(w, i)[k] = seconds(w, i, i + k)) == never) break;
                reach = k;
            }
        }
        for (int i = layers - 1; i >= 0; --i)
            if ((spans.to_end(w, i) = seconds(w, i, layers)) == never) break;
    }
    return spans;
}

Spans capped(const Spans& timed, const Spans& own, double cap, const std::vector<bool>& allowed) {
    Spans spans(int(allowed.size()), own.layers, own.rows);
    for (int w = 0; w < int(allowed.size()); ++w) {
        if (!allowed[w]) continue;
        for (int i = 0; i < own.rows; ++i) {
            const double* times = own.from(w, i);
            const int fit = own.reach[own.row(w, i)];
            const int reach = int(std::upper_bound(times + 1, times + 1 + fit, cap) - times) - 1;
            std::copy_n(timed.from(w, i) + 1, reach, spans.from(w, i) + 1);
            spans.reach[spans.row(w, i)] = reach;
        }
        for (int i = own.layers - 1; i >= 0 && own.to_end(w, i) <= cap; --i) spans.to_end(w, i) = timed.to_end(w, i);
    }
    return spans;
}

namespace {

// plan/cost.py core_wait_s.
double core_wait(double cpu, double loop, int in_flight, int cores) {
    const double turn = cpu / cores;
    double queue = 0, busy = 0, wait = 0;
    for (int count = 1; count <= in_flight; ++count) {
        wait = turn * std::max(0.0, queue - busy / 2);
        const double rate = loop + wait > 0 ? count / (loop + wait) : 0.0;
        queue = rate * (turn + wait);
        busy = rate * turn;
    }
    return std::max(wait, in_flight * turn - loop);
}

// Bytes of all links of a chain on each access line.
class LineUse {
  public:
    explicit LineUse(const Instance& instance) : instance_(instance), bytes_(instance.lines.size(), 0.0) {}

    void add(int u, int v, double bytes) {
        const int up = instance_.up.empty() ? -1 : instance_.up[u], down = instance_.down.empty() ? -1 : instance_.down[v];
        if (instance_.up.empty() || (up >= 0 && up / 2 == down / 2 && down >= 0)) return;  // (a site has two: 2 s and 2 s + 1)
        if (up >= 0) bytes_[up] += bytes;
        if (down >= 0) bytes_[down] += bytes;
    }
    double longest() const {
        double busy = 0;
        for (size_t n = 0; n < bytes_.size(); ++n) busy = std::max(busy, bytes_[n] / instance_.lines[n].rate);
        return busy;
    }

  private:
    const Instance& instance_;
    std::vector<double> bytes_;
};

}  // namespace

double step_of(const Instance& instance, const StageTable& stages, const LinkTable& links, int point, const Chain& chain) {
    const Point& at = instance.points[point];
    const Size& size = instance.sizes[at.size];
    const int head = instance.workers, stages_count = int(chain.workers.size());
    LineUse lines(instance);
    double loop = 0, longest = 0, compute = 0;
    int i = 0;
    const auto link = [&](LinkTimes times, int u, int v, double bytes) {
        loop += times.pass;
        longest = std::max(longest, times.busy);
        lines.add(u, v, bytes);
    };
    link(links.first(chain.workers[0]), head, chain.workers[0], size.ids);
    for (int s = 0; s < stages_count; ++s) {
        const int w = chain.workers[s], j = i + chain.layers[s];
        const double busy = stages.busy(at.size, w, i, j, chain.streamed[s]);
        compute += busy;
        longest = std::max(longest, busy);
        if (s + 1 < stages_count) {
            const int next = chain.workers[s + 1], codec = chain.codec[s];
            link(links.hop(w, next, codec), w, next, links.frame_bytes(codec));
        }
        i = j;
    }
    link(links.home(chain.workers.back()), chain.workers.back(), head, size.verdict);
    loop += compute;
    longest = std::max(longest, lines.longest());
    double wait = 0;
    if (instance.cores > 0) {
        const double cpu = (instance.is_computing ? compute : 0.0) + stages_count * instance.hop_cpu;
        wait = core_wait(cpu, loop, int(at.in_flight), instance.cores);
    }
    return std::max(at.in_flight * longest, loop + wait);
}

}  // namespace bloombee::plan
