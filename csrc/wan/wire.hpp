// A wire of finite bandwidth, on which flows take turns: of one link and direction, or of an access line that links share.
//
// No sockets and no clock in here: bytes come in with the time they came (which may lie ahead, on a wire behind another one), and
// leave with the time at which the wire is done with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
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

// What a chunk without bytes says: of a connection's end, or of its beginning (SYN, its answer, the caller's acknowledgement).
enum class Sign : std::uint8_t { none, eof, reset, syn, syn_ack, ack };

struct Pipe;

struct Chunk {
    Pipe* pipe = nullptr;
    std::vector<std::byte> bytes;
    std::size_t sent = 0;  // handed to the target so far
    Nanos arrival = 0;     // at the wire where it waits
    Nanos due = 0;
    Sign sign = Sign::none;
    int hop = 0;  // which wire of its way
};

struct Step {
    Nanos at = 0;  // after the schedule's start
    Shape shape;
    bool reset = false;  // connections are reset at that moment
};

// What puts chunks on wires, in order.
class Flow {
  public:
    virtual ~Flow() = default;
    // A wire is done with `chunk` at `t`.
    virtual void served(Chunk&& chunk, Nanos t) = 0;
    // The least time from then until `chunk` could be due.
    virtual Nanos rest(const Chunk& chunk) const = 0;
};

class Wire {
  public:
    // Changes the shape from `t` on; what has been put on the wire keeps its time.
    void set(const Shape& shape, Nanos t);
    // Steps in order of time; with a period > 0 they repeat. The schedule starts with restart().
    void schedule(std::vector<Step> steps, Nanos period);
    void restart(Nanos t);

    // Takes a chunk that comes at chunk.arrival; of one flow in order of arrival.
    void push(Flow& flow, Chunk&& chunk);
    // Applies the steps that are due and serves whatever may start by `t`. Wires in the order in which chunks pass them.
    void advance(Nanos t);
    // Takes out what waits of `pipe`; how many bytes that was.
    std::size_t forget(const Pipe& pipe);

    // The next time at which something happens by itself: a step, or the earliest moment at which a waiting chunk could be due.
    Nanos next() const;
    Nanos time_of(std::size_t bytes) const;

    const Shape& shape() const { return shape_; }
    Nanos busy() const { return busy_; }
    std::uint64_t bytes() const { return bytes_; }
    std::uint64_t resets() const { return resets_; }

  private:
    struct Queue {
        Flow* flow;
        std::deque<Chunk> chunks;
        double finish = 0;  // virtual time at which what was served of it ends
    };

    void change(const Shape& shape, Nanos t);
    void run(Nanos t);
    Queue* turn(Nanos start);
    Nanos step_time() const;

    Shape shape_;
    std::vector<Step> steps_;
    Nanos period_ = 0;
    Nanos started_ = kNever;  // of the current round of the schedule
    std::size_t next_step_ = 0;

    std::vector<Queue> queues_;
    double virtual_ = 0;
    Nanos free_ = 0;
    Nanos busy_ = 0;  // time spent on bytes (0 where unlimited)
    std::uint64_t bytes_ = 0;
    std::uint64_t resets_ = 0;
};

}  // namespace wan
