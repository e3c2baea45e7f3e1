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

void Direction::via(Wire* up, Wire* down) {
    up_ = up;
    down_ = down;
}

Shape Direction::narrowest() const {
    Shape shape = wire_.shape();
    for (int hop = 0; hop < kHops; ++hop) {
        const double bits_per_s = at(hop) != nullptr ? at(hop)->shape().bits_per_s : 0;
        if (bits_per_s > 0 && (shape.bits_per_s <= 0 || bits_per_s < shape.bits_per_s)) shape.bits_per_s = bits_per_s;
    }
    return shape;
}

bool Direction::is_up() const {
    bool up = true;
    for (int hop = 0; hop < kHops; ++hop) up = up && (at(hop) == nullptr || at(hop)->shape().up);
    return up;
}

void Direction::advance(Nanos t) {
    for (int hop = 0; hop < kHops; ++hop)
        if (at(hop) != nullptr) at(hop)->advance(t);
}

void Direction::push(Pipe& pipe, std::span<const std::byte> bytes, Sign sign, Nanos t) {
    advance(t);
    waiting_ += bytes.size();
    held_ += bytes.size();
    counters_.bytes_in += bytes.size();
    counters_.max_held = std::max(counters_.max_held, held_);
    const int first = up_ != nullptr ? 0 : 1;
    at(first)->push(*this, {&pipe, {bytes.begin(), bytes.end()}, 0, t, 0, sign, first});
    advance(t);
}

void Direction::served(Chunk&& chunk, Nanos t) {
    chunk.arrival = t;
    for (++chunk.hop; chunk.hop < kHops; ++chunk.hop) {
        if (at(chunk.hop) == nullptr) continue;
        at(chunk.hop)->push(*this, std::move(chunk));
        return;
    }
    land(std::move(chunk), t);
}

Nanos Direction::rest(const Chunk& chunk) const {
    Nanos least = wire_.shape().delay - wire_.shape().jitter;
    for (int hop = chunk.hop + 1; hop < kHops; ++hop)
        if (at(hop) != nullptr) least += at(hop)->time_of(chunk.bytes.size());
    return least;
}

// The last wire is done with it.
void Direction::land(Chunk&& chunk, Nanos t) {
    waiting_ -= chunk.bytes.size();
    Nanos due = t + wire_.shape().delay + jitter(t);
    if (loses(chunk.bytes.size())) {
        due += wire_.shape().stall;
        ++counters_.losses;
    }
    Pipe& pipe = *chunk.pipe;
    chunk.due = pipe.last_due = std::max(due, pipe.last_due);
    pipe.flight.push_back(std::move(chunk));
}

// Straight lines between knots that are uniform in [-1, 1] and far enough apart that the delay never falls faster
// than half as fast as time goes on: bytes keep their order without waiting for each other, so the mean delay is
// the one asked for, under load too.
Nanos Direction::jitter(Nanos t) {
    const Nanos asked = wire_.shape().jitter;
    if (std::exchange(knot_jitter_, asked) != asked) knot_gap_ = 0;
    if (asked == 0) return 0;
    if (knot_gap_ == 0 || t >= knot_time_ + 2 * knot_gap_) {
        knot_gap_ = std::max(10 * kMillisecond, 4 * asked);
        knot_time_ = t;
        knot_from_ = 2 * random_.uniform() - 1;
        knot_to_ = 2 * random_.uniform() - 1;
    } else if (t >= knot_time_ + knot_gap_) {
        knot_time_ += knot_gap_;
        knot_from_ = std::exchange(knot_to_, 2 * random_.uniform() - 1);
    }
    const double part = static_cast<double>(t - knot_time_) / static_cast<double>(knot_gap_);
    return std::llround(static_cast<double>(asked) * (knot_from_ + (knot_to_ - knot_from_) * part));
}

bool Direction::loses(std::size_t bytes) {
    const double loss = wire_.shape().loss;
    if (loss <= 0 || bytes == 0) return false;
    const double packets = std::ceil(static_cast<double>(bytes) / static_cast<double>(kPacketBytes));
    return random_.uniform() < 1 - std::pow(1 - loss, packets);
}

void Direction::handed_over(std::size_t bytes) {
    held_ -= bytes;
    counters_.bytes_out += bytes;
}

void Direction::forget(Pipe& pipe) {
    for (const Chunk& chunk : pipe.flight) held_ -= chunk.bytes.size() - chunk.sent;
    pipe.flight.clear();
    for (int hop = 0; hop < kHops; ++hop) {
        const std::size_t bytes = at(hop) != nullptr ? at(hop)->forget(pipe) : 0;
        held_ -= bytes;
        waiting_ -= bytes;
    }
}

bool Direction::take_reset() {
    std::uint64_t resets = 0;
    for (int hop = 0; hop < kHops; ++hop) resets += at(hop) != nullptr ? at(hop)->resets() : 0;
    return std::exchange(resets_seen_, resets) != resets;
}

Counters Direction::counters() const {
    Counters counters = counters_;
    counters.busy = wire_.busy();
    return counters;
}

}  // namespace wan
