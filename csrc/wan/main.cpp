// bloombee-wan: relays TCP connections through emulated long links. Driven by tools/wan.py over its standard input; ends
// when that does. One thread, one epoll; see direction.hpp for the model and control.hpp for the commands.
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "control.hpp"
#include "relay.hpp"
#include "units.hpp"

namespace {

using namespace wan;

// A wait shorter than this is spent polling: arming a timer and waking from it takes about as long.
constexpr Nanos kSpin = 20'000;
// Waking from a sleep longer than kLongSleep takes up to about this long (the core has gone idle), so the timer is set
// earlier by it and the rest is spent polling. Under load sleeps are short and this costs nothing.
constexpr Nanos kEarly = 80'000;
constexpr Nanos kLongSleep = 2 * kMillisecond;

void watch(int epoll, int fd, std::uint32_t events, Watched& watched) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = &watched;
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

// Real-time priority where it may, else the finest timers an ordinary process gets.
const char* take_priority() {
    sched_param param{};
    param.sched_priority = 10;
    if (sched_setscheduler(0, SCHED_RR, &param) == 0) return "SCHED_RR";
    prctl(PR_SET_TIMERSLACK, 1);
    return "SCHED_OTHER";
}

class Loop {
  public:
    Loop()
        : epoll_(epoll_create1(EPOLL_CLOEXEC)),
          timer_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)),
          control_(epoll_, take_priority()) {
        fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
        watch(epoll_, timer_, EPOLLIN | EPOLLET, timer_watch_);
        watch(epoll_, STDIN_FILENO, EPOLLIN, control_);
    }

    int run() {
        if (epoll_ < 0 || timer_ < 0) {
            std::perror("bloombee-wan");
            return 1;
        }
        bool again = false;
        for (;;) {
            std::array<epoll_event, 128> events;
            const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), again ? 0 : -1);
            if (n < 0 && errno != EINTR) return 1;
            for (int i = 0; i < n; ++i)
                if (!dispatch(events[i])) return 0;
            again = false;
            control_.advance(now());
            for (auto& link : control_.links()) {
                again |= link->pump();
                link->bury();
            }
            Nanos next = control_.next();  // after all have pumped: on shared lines one may have moved another's bytes
            for (auto& link : control_.links()) next = std::min(next, link->next());
            if (!again) again = !sleep_until(next);
        }
    }

  private:
    bool dispatch(const epoll_event& event) {
        auto* watched = static_cast<Watched*>(event.data.ptr);
        switch (watched->kind) {
            case Watched::Kind::timer: armed_ = kNever; return true;
            case Watched::Kind::control: return control_.read();
            case Watched::Kind::listener: static_cast<Listener*>(watched)->accept(); return true;
            case Watched::Kind::socket: Link::on_event(*static_cast<Socket*>(watched), event.events); return true;
        }
        return true;
    }

    // Arms the timer; false if `t` is so near that waiting is not worth it.
    bool sleep_until(Nanos t) {
        if (t == kNever) return true;
        const Nanos left = t - now();
        if (left < kEarly && t == early_for_) return false;
        if (left < kSpin) return false;
        if (left > kLongSleep) {
            early_for_ = t;
            t -= kEarly;
        }
        if (t == armed_) return true;
        itimerspec when{};
        when.it_value.tv_sec = t / kSecond;
        when.it_value.tv_nsec = t % kSecond;
        timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
        armed_ = t;
        return true;
    }

    int epoll_;
    int timer_;
    Watched timer_watch_{Watched::Kind::timer};
    Control control_;
    Nanos armed_ = kNever;
    Nanos early_for_ = kNever;  // the moment that the timer was set early for
};

}  // namespace

int main() {
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGINT, SIG_IGN);  // what a terminal or a supervisor sends to the whole group is for the parent: it closes our input
    std::signal(SIGTERM, SIG_IGN);
    return Loop().run();
}
