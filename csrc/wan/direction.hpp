// One direction of an emulated link: a queue, a wire of finite bandwidth, and a delay line.
//
// No sockets and no clock in here: bytes come in with the time they came, and leave with the time they are due.
//
//     push --> waiting (one FIFO) --advance--> wire (bits / bandwidth) --> flight (delay, jitter, loss), per pipe
//
// A Pipe is one direction of one TCP connection. All pipes of a link share one FIFO and one wire; each pipe keeps its
// own order on the delay line, so that a loss holds up its own connection only, as TCP does. Bytes are `held`
// from push until the shell has handed them to the target's socket; at most limit() are, then can_push() is
// false and the shell stops reading: that is the back-pressure a sender feels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "units.hpp"

namespace wan {

struct Shape {
    double bits_per_s = 0;  // 0: unlimited
    Nanos delay = 0;        // one way
    Nanos jitter = 0;       // the delay wanders within +- jitter; at most delay
    double loss = 0;        // probability that a packet of kPacketBytes is lost
    Nanos stall = 0;        // how long a loss holds up its connection
    bool up = true;         // false: an outage, nothing enters the wire
};

inline constexpr std::size_t kPacketBytes = 1448;
inline constexpr std::size_t kFloorBytes = 64 * 1024;

// Most bytes that may be held: one bandwidth-delay product (both ways at this direction's delay), or 64 KB if that
// is more. Half of it is in flight when the wire is full, the other half is the queue in front of it.
std::size_t limit_bytes(const Shape& shape);

// How much is read and moved as one piece: 500 us of wire, between one packet and 32 KB.
std::size_t quantum_bytes(const Shape& shape);

enum class Ending : std::uint8_t { none, eof, reset };

struct Pipe;

struct Chunk {
    Pipe* pipe = nullptr;
    std::vector<std::byte> bytes;
    std::size_t sent = 0;  // handed to the target so far
    Nanos arrival = 0;
    Nanos due = 0;
    Ending ending = Ending::none;
};

struct Pipe {
    std::deque<Chunk> flight;  // due times never fall
    Nanos last_due = 0;
};

struct Step {
    Nanos at = 0;  // after the schedule's start
    Shape shape;
};

struct Counters {
    std::uint64_t bytes_in = 0;   // read from senders
    std::uint64_t bytes_out = 0;  // handed to receivers
    Nanos busy = 0;               // time the wire spent on bytes (0 where unlimited)
    std::uint64_t losses = 0;
    std::size_t max_held = 0;
};

class Direction {
  public:
    explicit Direction(std::uint64_t seed) : random_(seed) {}

    // Changes the shape from `t` on; bytes already on the delay line keep their time.
    void set(const Shape& shape, Nanos t);
    // Steps in order of time; with a period > 0 they repeat. The schedule starts with restart().
    void schedule(std::vector<Step> steps, Nanos period);
    void restart(Nanos t);

    bool can_push() const { return held_ + quantum_bytes(shape_) <= limit_bytes(shape_); }
    // Takes bytes that came at `t`, which may lie a little in the past.
    void push(Pipe& pipe, std::span<const std::byte> bytes, Ending ending, Nanos t);
    // Applies the steps that are due and puts on the wire whatever may start by `t`.
    void advance(Nanos t);
    // The shell gave `bytes` of a flight chunk to the target's socket.
    void handed_over(std::size_t bytes);
    // Drops all chunks of a pipe that will never be delivered.
    void forget(Pipe& pipe);

    // The next time at which something happens by itself, pipes' flights apart: a step, or the earliest moment
    // at which the first waiting chunk could be due.
    Nanos next() const;

    const Shape& shape() const { return shape_; }
    std::size_t held() const { return held_; }
    std::size_t waiting() const { return waiting_bytes_; }
    const Counters& counters() const { return counters_; }

  private:
    void run_wire(Nanos t);
    Nanos step_time() const;
    Nanos wire_time(std::size_t bytes) const;
    Nanos jitter(Nanos t);
    bool loses(std::size_t bytes);

    Shape shape_;
    std::vector<Step> steps_;
    Nanos period_ = 0;
    Nanos started_ = kNever;  // of the current round of the schedule
    std::size_t next_step_ = 0;

    std::deque<Chunk> waiting_;
    std::size_t waiting_bytes_ = 0;
    std::size_t held_ = 0;
    Nanos wire_free_ = 0;

    Random random_;
    Nanos knot_time_ = 0;  // jitter runs on straight lines between random knots
    Nanos knot_gap_ = 0;
    double knot_from_ = 0;
    double knot_to_ = 0;

    Counters counters_;
};

}  // namespace wan
