#include "wire.hpp"

#include <algorithm>
#include <cmath>

namespace wan {

void Wire::set(const Shape& shape, Nanos t) {
    advance(t);
    change(shape, t);
}

void Wire::change(const Shape& shape, Nanos t) {
    if (!shape_.up && shape.up) free_ = std::max(free_, t);
    shape_ = shape;
}

void Wire::schedule(std::vector<Step> steps, Nanos period) {
    steps_ = std::move(steps);
    period_ = period;
    started_ = kNever;
}

void Wire::restart(Nanos t) {
    if (steps_.empty()) return;
    started_ = t;
    next_step_ = 0;
}

Nanos Wire::step_time() const {
    if (started_ == kNever || next_step_ >= steps_.size()) return kNever;
    return started_ + steps_[next_step_].at;
}

void Wire::advance(Nanos t) {
    while (step_time() <= t) {
        const Nanos at = step_time();
        const Step& step = steps_[next_step_];
        run(at);
        if (++next_step_ == steps_.size() && period_ > 0) {
            started_ += period_;
            next_step_ = 0;
        }
        change(step.shape, at);
        resets_ += step.reset;
    }
    run(t);
}

void Wire::push(Flow& flow, Chunk&& chunk) {
    auto queue = std::find_if(queues_.begin(), queues_.end(), [&](const Queue& one) { return one.flow == &flow; });
    if (queue == queues_.end()) queue = queues_.insert(queue, Queue{&flow, {}});
    queue->chunks.push_back(std::move(chunk));
}

void Wire::run(Nanos t) {
    while (shape_.up) {
        Nanos first = kNever;
        for (const Queue& queue : queues_)
            if (!queue.chunks.empty()) first = std::min(first, queue.chunks.front().arrival);
        // From the wire's own clock, not from `t`: a shell that wakes late loses no bandwidth.
        const Nanos start = std::max(free_, first);
        if (first == kNever || start > t) return;
        Queue& queue = *turn(start);
        Chunk chunk = std::move(queue.chunks.front());
        queue.chunks.pop_front();
        const Nanos time = time_of(chunk.bytes.size());
        virtual_ = std::max(queue.finish, virtual_);
        queue.finish = virtual_ + static_cast<double>(chunk.bytes.size());
        free_ = start + time;
        busy_ += time;
        bytes_ += chunk.bytes.size();
        queue.flow->served(std::move(chunk), free_);
    }
}

// Start-time fair queueing (Goyal, Vin and Cheng 1996): of the flows that have something there, the one that has had least.
Wire::Queue* Wire::turn(Nanos start) {
    Queue* least = nullptr;
    for (Queue& queue : queues_) {
        if (queue.chunks.empty() || queue.chunks.front().arrival > start) continue;
        if (least == nullptr || std::max(queue.finish, virtual_) < std::max(least->finish, virtual_)) least = &queue;
    }
    return least;
}

std::size_t Wire::forget(const Pipe& pipe) {
    std::size_t bytes = 0;
    for (Queue& queue : queues_) {
        std::erase_if(queue.chunks, [&](const Chunk& chunk) {
            if (chunk.pipe != &pipe) return false;
            bytes += chunk.bytes.size();
            return true;
        });
    }
    return bytes;
}

Nanos Wire::time_of(std::size_t bytes) const {
    if (shape_.bits_per_s <= 0) return 0;
    return std::llround(static_cast<double>(bytes) * 8e9 / shape_.bits_per_s);
}

Nanos Wire::next() const {
    Nanos t = step_time();
    if (!shape_.up) return t;
    for (const Queue& queue : queues_) {
        if (queue.chunks.empty()) continue;
        const Chunk& chunk = queue.chunks.front();
        t = std::min(t, std::max(free_, chunk.arrival) + time_of(chunk.bytes.size()) + queue.flow->rest(chunk));
    }
    return t;
}

}  // namespace wan
