// One direction of an emulated link: a way over wires of finite bandwidth, and a delay line.
//
// No sockets and no clock in here: bytes come in with the time they came, and leave with the time they are due.
//
//     push --> [access line up] --> own wire --> [access line down] --land--> flight (delay, jitter, loss), per pipe
//
// A Pipe is one direction of one TCP connection. All pipes of a link share one FIFO on each wire; each pipe keeps its
// own order on the delay line, so that a loss holds up its own connection only, as TCP does. On access lines the links take turns.
// Bytes are `held` from push until the shell has handed them to the target's socket; at most limit() are, then can_push() is
// false and the shell stops reading: that is the back-pressure a sender feels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <utility>

#include "units.hpp"
#include "wire.hpp"

namespace wan {

inline constexpr std::size_t kPacketBytes = 1448;
inline constexpr std::size_t kFloorBytes = 64 * 1024;

// Most bytes that may be held: one bandwidth-delay product (both ways at this direction's delay), or 64 KB if that
// is more. Half of it is in flight when the wire is full, the other half is the queue in front of it.
std::size_t limit_bytes(const Shape& shape);

// How much is read and moved as one piece: 500 us of wire, between one packet and 32 KB.
std::size_t quantum_bytes(const Shape& shape);

struct Pipe {
    std::deque<Chunk> flight;  // due times never fall
    Nanos last_due = 0;
};

struct Counters {
    std::uint64_t bytes_in = 0;   // read from senders
    std::uint64_t bytes_out = 0;  // handed to receivers
    Nanos busy = 0;               // time the own wire spent on bytes (0 where unlimited)
    std::uint64_t losses = 0;
    std::size_t max_held = 0;
};

class Direction : public Flow {
  public:
    explicit Direction(std::uint64_t seed) : random_(seed) {}

    // The access lines before and after the own wire; null: none. Before anything is pushed; they must live longer.
    void via(Wire* up, Wire* down);
    Wire& wire() { return wire_; }

    bool can_push() const { return held_ + quantum_bytes(narrowest()) <= limit_bytes(narrowest()); }
    // Takes bytes that came at `t`, which may lie a little in the past.
    void push(Pipe& pipe, std::span<const std::byte> bytes, Sign sign, Nanos t);
    // All wires of the way, in order.
    void advance(Nanos t);
    // The shell gave `bytes` of a flight chunk to the target's socket.
    void handed_over(std::size_t bytes);
    // Drops all chunks of a pipe that will never be delivered.
    void forget(Pipe& pipe);
    // Whether a step has reset connections since it was last asked.
    bool take_reset();

    void served(Chunk&& chunk, Nanos t) override;
    Nanos rest(const Chunk& chunk) const override;
    // The next time at which something happens by itself on the own wire.
    Nanos next() const { return wire_.next(); }

    // As the own wire, with the bandwidth of the narrowest wire of the way.
    Shape narrowest() const;
    bool is_up() const;
    std::size_t held() const { return held_; }
    std::size_t waiting() const { return waiting_; }
    Counters counters() const;

  private:
    static constexpr int kHops = 3;
    const Wire* at(int hop) const { return hop == 1 ? &wire_ : hop == 0 ? up_ : down_; }
    Wire* at(int hop) { return const_cast<Wire*>(std::as_const(*this).at(hop)); }
    void land(Chunk&& chunk, Nanos t);
    Nanos jitter(Nanos t);
    bool loses(std::size_t bytes);

    Wire wire_;
    Wire* up_ = nullptr;
    Wire* down_ = nullptr;
    std::uint64_t resets_seen_ = 0;
    std::size_t waiting_ = 0;
    std::size_t held_ = 0;

    Random random_;
    Nanos knot_time_ = 0;  // jitter runs on straight lines between random knots
    Nanos knot_gap_ = 0;
    Nanos knot_jitter_ = 0;  // that they were made for
    double knot_from_ = 0;
    double knot_to_ = 0;

    Counters counters_;
};

}  // namespace wan
