#include "direction.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace wan {

namespace {

constexpr Nanos kQuantum = 500'000;
constexpr std::size_t kMaxQuantumBytes = 32 * 1024;
// Stands in for "unlimited" where a size is derived from the bandwidth.
constexpr double kFastBitsPerSecond = 10e9;

double bytes_in(const Shape& shape, Nanos time) {
    const double bits_per_s = shape.bits_per_s > 0 ? shape.bits_per_s : kFastBitsPerSecond;
    return bits_per_s / 8 * static_cast<double>(time) / static_cast<double>(kSecond);
}

}  // namespace

std::size_t limit_bytes(const Shape& shape) {
    return std::max(kFloorBytes, static_cast<std::size_t>(bytes_in(shape, 2 * shape.delay)));
}

std::size_t quantum_bytes(const Shape& shape) {
    return std::clamp(static_cast<std::size_t>(bytes_in(shape, kQuantum)), kPacketBytes, kMaxQuantumBytes);
}

void Direction::set(const Shape& shape, Nanos t) {
    advance(t);
    if (!shape_.up && shape.up) wire_free_ = std::max(wire_free_, t);
    if (shape.jitter != shape_.jitter) knot_gap_ = 0;
    shape_ = shape;
}

void Direction::schedule(std::vector<Step> steps, Nanos period) {
    steps_ = std::move(steps);
    period_ = period;
    started_ = kNever;
}

void Direction::restart(Nanos t) {
    if (steps_.empty()) return;
    started_ = t;
    next_step_ = 0;
}

Nanos Direction::step_time() const {
    if (started_ == kNever || next_step_ >= steps_.size()) return kNever;
    return started_ + steps_[next_step_].at;
}

void Direction::advance(Nanos t) {
    while (step_time() <= t) {
        const Nanos at = step_time();
        const Shape& shape = steps_[next_step_].shape;
        run_wire(at);
        if (++next_step_ == steps_.size() && period_ > 0) {
            started_ += period_;
            next_step_ = 0;
        }
        if (!shape_.up && shape.up) wire_free_ = std::max(wire_free_, at);
        if (shape.jitter != shape_.jitter) knot_gap_ = 0;
        shape_ = shape;
    }
    run_wire(t);
}

void Direction::push(Pipe& pipe, std::span<const std::byte> bytes, Ending ending, Nanos t) {
    advance(t);
    waiting_.push_back({&pipe, {bytes.begin(), bytes.end()}, 0, t, 0, ending});
    waiting_bytes_ += bytes.size();
    held_ += bytes.size();
    counters_.bytes_in += bytes.size();
    counters_.max_held = std::max(counters_.max_held, held_);
    run_wire(t);
}

void Direction::run_wire(Nanos t) {
    while (shape_.up && !waiting_.empty()) {
        Chunk& chunk = waiting_.front();
        // From the wire's own clock, not from `t`: a shell that wakes late loses no bandwidth.
        const Nanos start = std::max(wire_free_, chunk.arrival);
        if (start > t) return;
        const Nanos time = wire_time(chunk.bytes.size());
        wire_free_ = start + time;
        counters_.busy += time;
        waiting_bytes_ -= chunk.bytes.size();

        Nanos due = wire_free_ + shape_.delay + jitter(wire_free_);
        if (loses(chunk.bytes.size())) {
            due += shape_.stall;
            ++counters_.losses;
        }
        Pipe& pipe = *chunk.pipe;
        chunk.due = pipe.last_due = std::max(due, pipe.last_due);
        pipe.flight.push_back(std::move(chunk));
        waiting_.pop_front();
    }
}

Nanos Direction::wire_time(std::size_t bytes) const {
    if (shape_.bits_per_s <= 0) return 0;
    return std::llround(static_cast<double>(bytes) * 8e9 / shape_.bits_per_s);
}

// Straight lines between knots that are uniform in [-1, 1] and far enough apart that the delay never falls faster
// than half as fast as time goes on: bytes keep their order without waiting for each other, so the mean delay is
// the one asked for, under load too.
Nanos Direction::jitter(Nanos t) {
    if (shape_.jitter == 0) return 0;
    if (knot_gap_ == 0 || t >= knot_time_ + 2 * knot_gap_) {
        knot_gap_ = std::max(10 * kMillisecond, 4 * shape_.jitter);
        knot_time_ = t;
        knot_from_ = 2 * random_.uniform() - 1;
        knot_to_ = 2 * random_.uniform() - 1;
    } else if (t >= knot_time_ + knot_gap_) {
        knot_time_ += knot_gap_;
        knot_from_ = std::exchange(knot_to_, 2 * random_.uniform() - 1);
    }
    const double part = static_cast<double>(t - knot_time_) / static_cast<double>(knot_gap_);
    return std::llround(static_cast<double>(shape_.jitter) * (knot_from_ + (knot_to_ - knot_from_) * part));
}

bool Direction::loses(std::size_t bytes) {
    if (shape_.loss <= 0 || bytes == 0) return false;
    const double packets = std::ceil(static_cast<double>(bytes) / static_cast<double>(kPacketBytes));
    return random_.uniform() < 1 - std::pow(1 - shape_.loss, packets);
}

void Direction::handed_over(std::size_t bytes) {
    held_ -= bytes;
    counters_.bytes_out += bytes;
}

void Direction::forget(Pipe& pipe) {
    for (const Chunk& chunk : pipe.flight) held_ -= chunk.bytes.size() - chunk.sent;
    pipe.flight.clear();
    std::erase_if(waiting_, [&](const Chunk& chunk) {
        if (chunk.pipe != &pipe) return false;
        held_ -= chunk.bytes.size();
        waiting_bytes_ -= chunk.bytes.size();
        return true;
    });
}

Nanos Direction::next() const {
    Nanos t = step_time();
    if (shape_.up && !waiting_.empty()) {
        const Chunk& chunk = waiting_.front();
        const Nanos start = std::max(wire_free_, chunk.arrival);
        t = std::min(t, start + wire_time(chunk.bytes.size()) + shape_.delay - shape_.jitter);
    }
    return t;
}

}  // namespace wan
