// The model of one direction under a clock that the test turns: every figure here is exact, no machine is measured.
#include "direction.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace wan;

namespace {

int failures = 0;

#define EXPECT_EQ(left, right)                                                                                       \
    do {                                                                                                             \
        const auto l = static_cast<long long>(left);                                                                 \
        const auto r = static_cast<long long>(right);                                                                \
        if (l != r) {                                                                                                \
            std::printf("%s:%d: %s = %lld, expected %s = %lld\n", __FILE__, __LINE__, #left, l, #right, r);          \
            ++failures;                                                                                              \
        }                                                                                                            \
    } while (false)
#define EXPECT(condition) EXPECT_EQ(condition, true)

constexpr double kMbit = 1e6;

void push(Direction& direction, Pipe& pipe, std::size_t bytes, Nanos t, Sign sign = Sign::none) {
    direction.push(pipe, std::vector<std::byte>(bytes), sign, t);
}

Direction make(const Shape& shape, std::uint64_t seed = 1) {
    Direction direction(seed);
    direction.wire().set(shape, 0);
    return direction;
}

// 1,000 bytes at 8 Mbit/s are 1 ms of wire; the second chunk waits for the first, a late one starts when it comes.
void wire_then_delay() {
    Direction direction = make({.bits_per_s = 8 * kMbit, .delay = 30 * kMillisecond});
    Pipe pipe;
    push(direction, pipe, 1000, 0);
    push(direction, pipe, 1000, 0);
    EXPECT_EQ(direction.next(), 32 * kMillisecond);  // the second, once the wire is free
    direction.advance(kMillisecond);
    push(direction, pipe, 500, 10 * kMillisecond);
    EXPECT_EQ(pipe.flight.size(), 3);
    EXPECT_EQ(pipe.flight[0].due, 31 * kMillisecond);
    EXPECT_EQ(pipe.flight[1].due, 32 * kMillisecond);
    EXPECT_EQ(pipe.flight[2].due, 10 * kMillisecond + kMillisecond / 2 + 30 * kMillisecond);
    EXPECT_EQ(direction.counters().busy, 2 * kMillisecond + kMillisecond / 2);
    EXPECT_EQ(direction.held(), 2500);
    direction.handed_over(1000);
    EXPECT_EQ(direction.held(), 1500);
    EXPECT_EQ(direction.counters().bytes_out, 1000);
}

// A shell that wakes a whole second late finds every chunk where it belongs.
void a_late_wake_loses_no_bandwidth() {
    Direction direction = make({.bits_per_s = 8 * kMbit});
    Pipe pipe;
    for (int i = 0; i < 10; ++i) push(direction, pipe, 1000, 0);
    direction.advance(kSecond);
    EXPECT_EQ(pipe.flight.back().due, 10 * kMillisecond);
}

void pipes_share_one_wire() {
    Direction direction = make({.bits_per_s = 8 * kMbit});
    Pipe bulk, control;
    for (int i = 0; i < 5; ++i) push(direction, bulk, 1000, 0);
    push(direction, control, 10, 0);
    direction.advance(kSecond);
    EXPECT_EQ(control.flight.front().due, 5 * kMillisecond + 10'000);
}

void limit_is_one_product_or_the_floor() {
    EXPECT_EQ(limit_bytes({.bits_per_s = 100 * kMbit, .delay = 30 * kMillisecond}), 750'000);
    EXPECT_EQ(limit_bytes({.bits_per_s = kMbit, .delay = kMillisecond}), 64 * 1024);
    for (double bits_per_s : {kMbit, 100 * kMbit, 1000 * kMbit, 0.0}) {
        for (Nanos delay : {Nanos{0}, kMillisecond, 300 * kMillisecond}) {
            const Shape shape{.bits_per_s = bits_per_s, .delay = delay};
            Direction direction = make(shape);
            Pipe pipe;
            while (direction.can_push()) push(direction, pipe, quantum_bytes(shape), 0);
            EXPECT(direction.held() <= limit_bytes(shape));
            EXPECT(direction.held() + quantum_bytes(shape) > limit_bytes(shape));
            EXPECT_EQ(direction.counters().max_held, direction.held());
            direction.handed_over(quantum_bytes(shape));
            EXPECT(direction.can_push());
        }
    }
}

// With the limit always filled up again, the wire never stands still: in 10 s it is busy for 10 s.
void a_full_link_keeps_its_bandwidth() {
    for (double bits_per_s : {kMbit, 20 * kMbit, 1000 * kMbit}) {
        for (Nanos delay : {Nanos{0}, kMillisecond, 50 * kMillisecond}) {
            const Shape shape{.bits_per_s = bits_per_s, .delay = delay, .jitter = delay / 10};
            Direction direction = make(shape);
            Pipe pipe;
            for (Nanos t = 0; t < 2 * kSecond;) {
                direction.advance(t);
                while (!pipe.flight.empty() && pipe.flight.front().due <= t) {
                    direction.handed_over(pipe.flight.front().bytes.size());
                    pipe.flight.pop_front();
                }
                while (direction.can_push()) push(direction, pipe, quantum_bytes(shape), t);
                t = std::min(direction.next(), pipe.flight.empty() ? kNever : pipe.flight.front().due);
            }
            EXPECT(direction.counters().busy >= 2 * kSecond - 20 * kMillisecond);
        }
    }
}

void jitter_keeps_order_range_and_mean() {
    const Shape shape{.delay = 20 * kMillisecond, .jitter = 5 * kMillisecond};
    Direction direction = make(shape);
    Pipe pipe;
    double sum = 0;
    Nanos least = kNever, most = 0, last = 0;
    constexpr int count = 200'000;
    for (int i = 0; i < count; ++i) {
        const Nanos t = i * kMillisecond / 10;
        push(direction, pipe, 1, t);
        const Nanos due = pipe.flight.front().due;
        pipe.flight.pop_front();
        EXPECT(due >= last);
        last = due;
        least = std::min(least, due - t);
        most = std::max(most, due - t);
        sum += static_cast<double>(due - t);
    }
    EXPECT(least >= 15 * kMillisecond && least < 16 * kMillisecond);
    EXPECT(most <= 25 * kMillisecond && most > 24 * kMillisecond);
    EXPECT(std::abs(sum / count - 20e6) < 0.3e6);
}

void a_loss_holds_up_its_own_pipe_only() {
    const Shape lossy{.delay = 10 * kMillisecond, .loss = 1, .stall = 100 * kMillisecond};
    Direction direction = make(lossy);
    Pipe hit, other;
    push(direction, hit, 1000, 0);
    direction.wire().set({.delay = 10 * kMillisecond}, 0);
    push(direction, hit, 1000, kMillisecond);
    push(direction, other, 1000, kMillisecond);
    EXPECT_EQ(hit.flight[0].due, 110 * kMillisecond);
    EXPECT_EQ(hit.flight[1].due, 110 * kMillisecond);
    EXPECT_EQ(other.flight[0].due, 11 * kMillisecond);
    EXPECT_EQ(direction.counters().losses, 1);

    Direction some = make({.loss = 0.01});
    Pipe pipe;
    for (int i = 0; i < 20'000; ++i) push(some, pipe, 1448, i);
    EXPECT(some.counters().losses > 140 && some.counters().losses < 260);
}

// 1 ms a chunk, ten times that from the step on; the chunk on the wire at that moment still goes at the old rate.
void a_step_changes_what_has_not_started() {
    Direction direction = make({.bits_per_s = 8 * kMbit});
    direction.wire().schedule({{.at = 2'500'000, .shape = {.bits_per_s = 0.8 * kMbit}}}, 0);
    direction.wire().restart(0);
    Pipe pipe;
    for (int i = 0; i < 5; ++i) push(direction, pipe, 1000, 0);
    direction.advance(kSecond);
    const Nanos expected[] = {1, 2, 3, 13, 23};
    for (int i = 0; i < 5; ++i) EXPECT_EQ(pipe.flight[i].due, expected[i] * kMillisecond);
}

void an_outage_stops_the_wire_not_the_flight() {
    const Shape up{.bits_per_s = 8 * kMbit, .delay = 10 * kMillisecond};
    Shape down = up;
    down.up = false;
    Direction direction = make(up);
    Pipe pipe;
    push(direction, pipe, 1000, 0);
    direction.wire().set(down, kMillisecond / 2);
    push(direction, pipe, 1000, kMillisecond);
    direction.advance(kSecond);
    EXPECT_EQ(pipe.flight.size(), 1);
    EXPECT_EQ(pipe.flight[0].due, 11 * kMillisecond);
    EXPECT_EQ(direction.next(), kNever);
    direction.wire().set(up, kSecond);
    direction.advance(2 * kSecond);
    EXPECT_EQ(pipe.flight[1].due, kSecond + 11 * kMillisecond);
}

void a_period_repeats() {
    Direction direction = make({.delay = 1});
    direction.wire().schedule({{.at = 0, .shape = {.delay = 1}}, {.at = 10, .shape = {.delay = 2}}}, 20);
    EXPECT_EQ(direction.next(), kNever);
    direction.wire().restart(100);
    for (Nanos round = 0; round < 3; ++round) {
        direction.advance(100 + 20 * round);
        EXPECT_EQ(direction.wire().shape().delay, 1);
        EXPECT_EQ(direction.next(), 110 + 20 * round);
        direction.advance(110 + 20 * round);
        EXPECT_EQ(direction.wire().shape().delay, 2);
        EXPECT_EQ(direction.next(), 120 + 20 * round);
    }
}

void forgetting_a_pipe_gives_its_bytes_back() {
    Direction direction = make({.bits_per_s = 8 * kMbit});
    Pipe gone, stays;
    push(direction, gone, 1000, 0);
    push(direction, gone, 2000, 0);
    push(direction, stays, 500, 0, Sign::eof);
    gone.flight.front().sent = 400;
    direction.handed_over(400);
    direction.forget(gone);
    EXPECT_EQ(direction.held(), 500);
    EXPECT_EQ(direction.waiting(), 500);
    direction.advance(kSecond);
    EXPECT_EQ(stays.flight.size(), 1);
    EXPECT(stays.flight[0].sign == Sign::eof);
    EXPECT(gone.flight.empty());
}

// Two links behind one line of 8 Mbit/s (1,000 bytes a ms): each gets every other ms, whichever came first with how much.
void links_take_turns_on_a_shared_line() {
    Wire line;
    line.set({.bits_per_s = 8 * kMbit}, 0);
    Direction first(1), second(2);
    Pipe one, other;
    for (Direction* direction : {&first, &second}) direction->via(&line, nullptr);
    for (int i = 0; i < 6; ++i) push(first, one, 1000, 0);
    for (int i = 0; i < 3; ++i) push(second, other, 1000, kMillisecond / 2);
    line.advance(kSecond);
    first.advance(kSecond);
    second.advance(kSecond);
    const Nanos ones[] = {1, 3, 5, 7, 8, 9}, others[] = {2, 4, 6};
    for (int i = 0; i < 6; ++i) EXPECT_EQ(one.flight[i].due, ones[i] * kMillisecond);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(other.flight[i].due, others[i] * kMillisecond);
    EXPECT_EQ(line.bytes(), 9000);
}

// By bytes, not by chunks: one that moves a tenth at a time gets ten times as many turns.
void turns_are_counted_in_bytes() {
    Wire line;
    line.set({.bits_per_s = 8 * kMbit}, 0);
    Direction large(1), small(2);
    Pipe one, other;
    for (Direction* direction : {&large, &small}) direction->via(&line, nullptr);
    for (int i = 0; i < 10; ++i) push(large, one, 1000, 0);
    for (int i = 0; i < 100; ++i) push(small, other, 100, 0);
    large.advance(kSecond);
    small.advance(kSecond);
    EXPECT(std::abs(one.flight.back().due - other.flight.back().due) <= kMillisecond);
    EXPECT_EQ(std::max(one.flight.back().due, other.flight.back().due), 20 * kMillisecond);
}

// Up 8, own 4 and down 2 Mbit/s: the narrowest says how fast, what precedes it how long the first takes.
void a_way_is_as_narrow_as_its_narrowest_wire() {
    Wire up, down;
    up.set({.bits_per_s = 8 * kMbit}, 0);
    down.set({.bits_per_s = 2 * kMbit}, 0);
    Direction direction = make({.bits_per_s = 4 * kMbit, .delay = 10 * kMillisecond});
    direction.via(&up, &down);
    Pipe pipe;
    for (int i = 0; i < 3; ++i) push(direction, pipe, 1000, 0);
    EXPECT_EQ(direction.narrowest().bits_per_s, 2 * kMbit);
    EXPECT_EQ(direction.waiting(), 3000);
    EXPECT_EQ(up.next(), 2 * kMillisecond + 2 * kMillisecond + 4 * kMillisecond + 10 * kMillisecond);
    direction.advance(kSecond);
    EXPECT_EQ(direction.waiting(), 0);
    const Nanos expected[] = {1 + 2 + 4, 1 + 2 + 8, 1 + 2 + 12};
    for (int i = 0; i < 3; ++i) EXPECT_EQ(pipe.flight[i].due, (expected[i] + 10) * kMillisecond);
}

// A dark link keeps its bytes to itself: the line that it shares goes on for others. A dark line holds up all.
void an_outage_is_of_its_own_wire() {
    Wire line;
    line.set({.bits_per_s = 8 * kMbit}, 0);
    Direction dark = make({.up = false}), bright(2);
    Pipe one, other;
    for (Direction* direction : {&dark, &bright}) direction->via(&line, nullptr);
    push(dark, one, 1000, 0);
    push(bright, other, 1000, 0);
    dark.advance(kSecond);
    bright.advance(kSecond);
    EXPECT(one.flight.empty() && !dark.is_up());
    EXPECT_EQ(other.flight.front().due, 2 * kMillisecond);
    line.set({.up = false}, kSecond);
    EXPECT(!bright.is_up());
    push(bright, other, 1000, kSecond);
    bright.advance(2 * kSecond);
    EXPECT_EQ(other.flight.size(), 1);
    dark.wire().set({}, 2 * kSecond);
    dark.advance(3 * kSecond);
    EXPECT_EQ(one.flight.front().due, 2 * kSecond);
    EXPECT_EQ(bright.waiting(), 1000);
    bright.forget(other);
    EXPECT_EQ(bright.held(), 0);
    EXPECT_EQ(bright.waiting(), 0);
}

void a_reset_is_told_once_by_own_wire_and_lines() {
    Wire line;
    Direction direction(1);
    direction.via(nullptr, &line);
    direction.wire().schedule({{.at = 10, .shape = {}, .reset = true}}, 0);
    line.schedule({{.at = 20, .shape = {}, .reset = true}}, 0);
    direction.wire().restart(0);
    line.restart(0);
    EXPECT_EQ(direction.next(), 10);
    direction.advance(9);
    EXPECT(!direction.take_reset());
    for (Nanos t : {10, 20}) {
        direction.advance(t);
        EXPECT(direction.take_reset());
        EXPECT(!direction.take_reset());
    }
}

}  // namespace

int main() {
    wire_then_delay();
    a_late_wake_loses_no_bandwidth();
    pipes_share_one_wire();
    limit_is_one_product_or_the_floor();
    a_full_link_keeps_its_bandwidth();
    jitter_keeps_order_range_and_mean();
    a_loss_holds_up_its_own_pipe_only();
    a_step_changes_what_has_not_started();
    an_outage_stops_the_wire_not_the_flight();
    a_period_repeats();
    forgetting_a_pipe_gives_its_bytes_back();
    links_take_turns_on_a_shared_line();
    turns_are_counted_in_bytes();
    a_way_is_as_narrow_as_its_narrowest_wire();
    an_outage_is_of_its_own_wire();
    a_reset_is_told_once_by_own_wire_and_lines();
    std::printf(failures == 0 ? "ok\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
