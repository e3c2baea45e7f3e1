// Commands from the parent on standard input, one line each; every line gets one line of JSON in answer.
//
//     link LINK HOST PORT TARGET_HOST TARGET_PORT      numeric addresses; port 0: any; links count from 0
//     shape LINK DIRECTION SHAPE                       from now on; direction 0 forward, 1 backward
//     step LINK DIRECTION AT_NS SHAPE                  add to the schedule, in order of time
//     period LINK NS                                   the schedule repeats (0: once)
//     listen                                           answers {"ok":true,"ports":[..]}
//     start                                            the schedules begin now (again)
//     stats | quit                                     counters of all links; quit answers with the last ones
//
//     SHAPE = BITS_PER_S DELAY_NS JITTER_NS LOSS STALL_NS UP(0|1)
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "relay.hpp"

namespace wan {

class Control : public Watched {
  public:
    Control(int epoll, std::string scheduler) : Watched(Kind::control), epoll_(epoll), scheduler_(std::move(scheduler)) {}

    // Reads what is there and answers it; false at the end of input or after quit.
    bool read();
    std::vector<std::unique_ptr<Link>>& links() { return links_; }

  private:
    struct Endpoint {
        sockaddr_storage address{};
        socklen_t length = 0;
    };

    std::string answer(std::string_view line);
    std::string link(const std::vector<std::string>& words);
    std::string shape(const std::vector<std::string>& words, bool is_step);
    std::string listen();
    std::string stats() const;

    int epoll_;
    std::string scheduler_;
    std::string input_;
    bool stopped_ = false;
    std::vector<std::unique_ptr<Link>> links_;
    std::vector<Endpoint> endpoints_;
    struct Schedule {
        std::vector<Step> steps[2];
        Nanos period = 0;
    };
    std::vector<Schedule> schedules_;
};

}  // namespace wan
