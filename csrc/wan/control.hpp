// Commands from the parent on standard input, one line each; every line gets one line of JSON in answer.
//
//     link LINK                                        links, lines and listeners count from 0
//     line LINE up|down                                an access line: a wire that links share, before or after their own
//     via LINK DIRECTION UP DOWN                       the lines on the way of a direction (-: none); 0 forward, 1 backward
//     listener LISTENER HOST PORT TARGET_HOST TARGET_PORT    numeric addresses; port 0: any
//     route LISTENER LINK SIDE SOURCE                  callers from SOURCE (numeric, *: anywhere) dial from end SIDE of LINK
//     shape WIRE SHAPE                                 from now on; WIRE is LINK.DIRECTION or @LINE
//     step WIRE AT_NS RESET(0|1) SHAPE                 add to the schedule, in order of time
//     period WIRE NS                                   the schedule repeats (0: once)
//     listen                                           answers {"ok":true,"ports":[..]}, of each listener
//     start                                            the schedules begin now (again)
//     reset LINK                                       RST to both ends of its connections
//     stats | quit                                     all counters; quit answers with the last ones
//
//     SHAPE = BITS_PER_S DELAY_NS JITTER_NS LOSS STALL_NS UP(0|1)
#pragma once

#include <map>
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
    // Brings every wire to `t`, in the order in which chunks pass them: what comes to a shared one is there in time.
    void advance(Nanos t);
    // The next time at which an access line does something by itself.
    Nanos next() const;
    std::vector<std::unique_ptr<Link>>& links() { return links_; }

  private:
    using Words = std::vector<std::string>;
    struct Line {
        Wire wire;
        bool is_up = true;
    };
    struct Door {
        std::unique_ptr<Listener> listener;
        Endpoint at;
    };
    struct Schedule {
        std::vector<Step> steps;
        Nanos period = 0;
    };

    std::string answer(std::string_view line);
    std::string link(const Words& words);
    std::string line(const Words& words);
    std::string via(const Words& words);
    std::string listener(const Words& words);
    std::string route(const Words& words);
    std::string shape(const Words& words);
    std::string step(const Words& words);
    std::string period(const Words& words);
    std::string listen();
    std::string start();
    std::string reset(const Words& words);
    std::string stats() const;
    // The wire that a word names, or null.
    Wire* wire(const std::string& word);
    Link* link_of(const std::string& word);

    int epoll_;
    std::string scheduler_;
    std::string input_;
    bool stopped_ = false;
    std::vector<std::unique_ptr<Line>> lines_;  // outlive the links, whose bytes wait there
    std::vector<std::unique_ptr<Link>> links_;
    std::vector<Door> doors_;
    std::map<Wire*, Schedule> schedules_;
};

}  // namespace wan
