#include "plan/labels.h"

#include <algorithm>

namespace bloombee::plan {
namespace {

// Comparing each label with all better ones of its worker pays for the best of them only.
constexpr size_t most_compared = 64;

// Some 200 MB.
constexpr size_t most_labels = size_t{1} << 21;

}  // namespace

Labels::Labels(const PathProblem& problem, const PathProblem& priced, double constant, const PathProblem* second,
               double second_limit)
    : problem_(problem), priced_(priced), constant_(constant), second_(second), second_limit_(second_limit), rest_(priced),
      second_rest_(second ? *second : problem), buckets_(problem.layers), bit_(problem.workers, 0) {
    rest_.solve();
    if (second) second_rest_.solve();
}

double Labels::search(double below, int width, bool strict, Budget& budget) {
    below_ = below;
    strict_ = strict;
    left_out_ = counts_ = never;
    best_ = {};
    labels_.clear();
    width_ = static_cast<size_t>(width);
    start();
    for (int i = 1; i < problem_.layers; ++i) {
        Bucket& bucket = buckets_[i];
        std::sort(bucket.begin(), bucket.end(), [&](int32_t a, int32_t b) { return labels_[a].bound < labels_[b].bound; });
        drop_dominated(bucket);
        trim(bucket, width_);
        for (size_t n = 0; n < bucket.size(); ++n) {
            if (labels_[bucket[n]].bound >= below_) break;
            if (n % 64 == 63 && (budget.is_spent() || labels_.size() > most_labels)) {
                left_out_ = std::min(left_out_, labels_[bucket[n]].bound);
                break;
            }
            const size_t before = labels_.size();
            extend(bucket[n], i);
            budget.spend(static_cast<int64_t>(1 + labels_.size() - before));
        }
        Bucket().swap(bucket);
    }
    return left_out_;
}

void Labels::start() {
    for (int v = 0; v < problem_.workers; ++v)
        if (problem_.first[v] < never)
            enter(-1, 0, 0, v, priced_.first[v] - constant_, problem_.first[v], second_ ? second_->first[v] : 0.0);
}

void Labels::extend(int32_t index, int i) {
    const Label label = labels_[index];
    const double* hop = &priced_.hop[size_t(label.worker) * problem_.workers];
    for (int v = 0; v < problem_.workers; ++v) {
        if (!(label.cost + hop[v] + rest_.enter(i, v) < below_) || (label.seen & bit_[v])) continue;
        if (strict_ && is_on_way(index, v)) continue;
        const double second = second_ ? label.second + second_->hop_of(label.worker, v) : 0.0;
        enter(index, label.seen, i, v, label.cost + hop[v], label.plain + problem_.hop_of(label.worker, v), second);
    }
}

// All spans that v may take from layer i on.
void Labels::enter(int32_t parent, uint64_t seen, int i, int v, double cost, double plain, double second) {
    if (second_ && second + second_rest_.enter(i, v) > second_limit_) return;
    const double *span = problem_.spans.from(v, i), *priced = priced_.spans.from(v, i);
    const int longest = problem_.spans.longest(v, i);
    for (int k = 1; k <= longest; ++k) {
        Label label{cost + priced[k], 0, plain + span[k], second, parent, int16_t(v), int16_t(k), seen | bit_[v]};
        label.bound = label.cost + rest_.leave(i + k, v);
        if (!(label.bound < below_)) continue;
        if (second_) {
            label.second += second_->spans.from(v, i)[k];
            if (label.second + second_rest_.leave(i + k, v) > second_limit_) continue;
        }
        push(label, i + k);
    }
    const double end = problem_.spans.to_end(v, i) + problem_.home[v];
    const double all = std::max(plain + end, cost + priced_.spans.to_end(v, i) + priced_.home[v]);
    if (!(all < below_)) return;
    if (second_ && second + second_->spans.to_end(v, i) + second_->home[v] > second_limit_) return;
    finish(parent, v, i, plain + end);
    below_ = counts_ = all;
}

void Labels::push(const Label& label, int i) {
    Bucket& bucket = buckets_[i];
    bucket.push_back(static_cast<int32_t>(labels_.size()));
    labels_.push_back(label);
    if (bucket.size() >= 8 * width_ + 256) {
        std::sort(bucket.begin(), bucket.end(), [&](int32_t a, int32_t b) { return labels_[a].bound < labels_[b].bound; });
        drop_dominated(bucket);
        trim(bucket, 4 * width_ + 128);
    }
}

void Labels::finish(int32_t parent, int v, int i, double plain) {
    best_ = {plain, {v}, {problem_.layers - i}};
    for (int32_t at = parent; at >= 0; at = labels_[at].parent) {
        best_.workers.push_back(labels_[at].worker);
        best_.layers.push_back(labels_[at].count);
    }
    std::reverse(best_.workers.begin(), best_.workers.end());
    std::reverse(best_.layers.begin(), best_.layers.end());
}

bool Labels::is_on_way(int32_t index, int v) const {
    for (; index >= 0; index = labels_[index].parent)
        if (labels_[index].worker == v) return true;
    return false;
}

void Labels::trim(Bucket& bucket, size_t most) {
    if (bucket.size() <= most) return;
    left_out_ = std::min(left_out_, labels_[bucket[most]].bound);
    bucket.resize(most);
}

// Labels are sorted by bound, so that of one worker by cost.
void Labels::drop_dominated(Bucket& bucket) {
    std::vector<Bucket> kept(problem_.workers);
    size_t out = 0;
    for (const int32_t index : bucket) {
        if (labels_[index].bound >= below_) break;
        Bucket& others = kept[labels_[index].worker];
        const bool is_worse = std::any_of(others.begin(), others.end(), [&](int32_t other) { return dominates(other, index); });
        if (is_worse) continue;
        if (others.size() < most_compared) others.push_back(index);
        bucket[out++] = index;
    }
    bucket.resize(out);
}

// Whether whatever completes b completes a as well, at no more cost.
bool Labels::dominates(int32_t a, int32_t b) const {
    const Label &x = labels_[a], &y = labels_[b];
    return x.plain <= y.plain && x.cost <= y.cost && x.second <= y.second && (x.seen & ~y.seen) == 0;
}

bool Labels::watch(int w) {
    if (bit_[w]) return true;
    if (watched_ == 64) return false;
    bit_[w] = uint64_t{1} << watched_++;
    return true;
}

}  // namespace bloombee::plan
