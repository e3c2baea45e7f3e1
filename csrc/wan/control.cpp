#include "control.hpp"

#include <netdb.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace wan {

namespace {

std::string failure(const std::string& message, int error = 0) {
    return "{\"ok\":false,\"errno\":" + std::to_string(error) + ",\"error\":\"" + message + "\"}";
}

const char* const kOk = "{\"ok\":true}";

bool resolve(const std::string& host, const std::string& port, Endpoint& endpoint) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return false;
    std::memcpy(&endpoint.address, found->ai_addr, found->ai_addrlen);
    endpoint.length = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

std::size_t number(const std::string& word) { return std::strtoul(word.c_str(), nullptr, 10); }

// Six words from `first` on, as in the header; false if one is not a number in range.
bool parse_shape(const std::vector<std::string>& words, std::size_t first, Shape& shape) {
    if (words.size() != first + 6) return false;
    double values[6];
    for (std::size_t i = 0; i < 6; ++i) {
        char* end = nullptr;
        values[i] = std::strtod(words[first + i].c_str(), &end);
        if (*end != 0 || !(values[i] >= 0) || values[i] > 1e18) return false;
    }
    shape = {values[0],
             static_cast<Nanos>(values[1]),
             static_cast<Nanos>(values[2]),
             values[3],
             static_cast<Nanos>(values[4]),
             values[5] != 0};
    return shape.jitter <= shape.delay && shape.loss <= 1;
}

}  // namespace

bool Control::read() {
    char buffer[4096];
    for (;;) {
        const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) break;
        if (n == 0) return false;
        input_.append(buffer, static_cast<std::size_t>(n));
    }
    std::size_t end;
    while (!stopped_ && (end = input_.find('\n')) != std::string::npos) {
        std::string reply = answer(std::string_view(input_).substr(0, end)) + "\n";
        input_.erase(0, end + 1);
        for (std::size_t done = 0; done < reply.size();) {
            const ssize_t n = write(STDOUT_FILENO, reply.data() + done, reply.size() - done);
            if (n < 0 && errno != EINTR) return false;
            if (n > 0) done += static_cast<std::size_t>(n);
        }
    }
    return !stopped_;
}

std::string Control::answer(std::string_view line) {
    std::istringstream stream{std::string(line)};
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    if (words.empty()) return failure("empty command");
    const std::string& verb = words[0];
    if (verb == "link") return link(words);
    if (verb == "line") return this->line(words);
    if (verb == "via") return via(words);
    if (verb == "listener") return listener(words);
    if (verb == "route") return route(words);
    if (verb == "shape") return shape(words);
    if (verb == "step") return step(words);
    if (verb == "period") return period(words);
    if (verb == "listen") return listen();
    if (verb == "start") return start();
    if (verb == "reset") return reset(words);
    if (verb == "stats") return stats();
    if (verb == "quit") {
        stopped_ = true;
        return stats();
    }
    return failure("unknown command");
}

void Control::advance(Nanos t) {
    if (lines_.empty()) return;  // then each direction is its only wire, and brings itself there
    for (auto& line : lines_)
        if (line->is_up) line->wire.advance(t);
    for (auto& link : links_)
        for (int d : {0, 1}) link->direction(d).wire().advance(t);
    for (auto& line : lines_)
        if (!line->is_up) line->wire.advance(t);
}

Nanos Control::next() const {
    Nanos t = kNever;
    for (const auto& line : lines_) t = std::min(t, line->wire.next());
    return t;
}

Link* Control::link_of(const std::string& word) {
    const std::size_t index = number(word);
    return index < links_.size() ? links_[index].get() : nullptr;
}

Wire* Control::wire(const std::string& word) {
    if (word.starts_with('@')) {
        const std::size_t index = number(word.substr(1));
        return index < lines_.size() ? &lines_[index]->wire : nullptr;
    }
    Link* link = link_of(word);
    return link == nullptr ? nullptr : &link->direction(word.ends_with(".1") ? 1 : 0).wire();
}

std::string Control::link(const Words& words) {
    if (words.size() != 2 || number(words[1]) != links_.size()) return failure("bad link command");
    links_.push_back(std::make_unique<Link>(epoll_, links_.size() + 1));
    return kOk;
}

std::string Control::line(const Words& words) {
    if (words.size() != 3 || number(words[1]) != lines_.size()) return failure("bad line command");
    lines_.push_back(std::make_unique<Line>());
    lines_.back()->is_up = words[2] == "up";
    return kOk;
}

std::string Control::via(const Words& words) {
    Link* link = words.size() == 5 ? link_of(words[1]) : nullptr;
    if (link == nullptr) return failure("bad via command");
    Wire* ends[2] = {nullptr, nullptr};
    for (int end : {0, 1}) {
        const std::string& word = words[3 + end];
        if (word == "-") continue;
        const std::size_t index = number(word);
        if (index >= lines_.size() || lines_[index]->is_up != (end == 0)) return failure("no such line");
        ends[end] = &lines_[index]->wire;
    }
    link->direction(words[2] == "1" ? 1 : 0).via(ends[0], ends[1]);
    return kOk;
}

std::string Control::listener(const Words& words) {
    Endpoint at, target;
    if (words.size() != 6 || number(words[1]) != doors_.size()) return failure("bad listener command");
    if (!resolve(words[2], words[3], at)) return failure("not a numeric address to listen at");
    if (!resolve(words[4], words[5], target)) return failure("not a numeric target address");
    doors_.push_back({std::make_unique<Listener>(epoll_, target), at});
    return kOk;
}

std::string Control::route(const Words& words) {
    if (words.size() != 5 || number(words[1]) >= doors_.size()) return failure("bad route command");
    Link* link = link_of(words[2]);
    if (link == nullptr) return failure("no such link");
    Endpoint source;
    const bool from_anywhere = words[4] == "*";
    if (!from_anywhere && !resolve(words[4], "0", source)) return failure("not a numeric source address");
    doors_[number(words[1])].listener->route(*link, words[3] == "1" ? 1 : 0, from_anywhere ? nullptr : &source);
    return kOk;
}

std::string Control::shape(const Words& words) {
    Wire* wire = words.size() > 1 ? this->wire(words[1]) : nullptr;
    if (wire == nullptr) return failure("no such wire");
    Shape shape;
    if (!parse_shape(words, 2, shape)) return failure("bad shape");
    wire->set(shape, now());
    return kOk;
}

std::string Control::step(const Words& words) {
    Wire* wire = words.size() > 3 ? this->wire(words[1]) : nullptr;
    if (wire == nullptr) return failure("no such wire");
    Step step;
    if (!parse_shape(words, 4, step.shape)) return failure("bad shape");
    step.at = std::strtoll(words[2].c_str(), nullptr, 10);
    step.reset = words[3] == "1";
    auto& steps = schedules_[wire].steps;
    if (step.at < 0 || (!steps.empty() && step.at < steps.back().at)) return failure("steps out of order");
    steps.push_back(step);
    return kOk;
}

std::string Control::period(const Words& words) {
    Wire* wire = words.size() == 3 ? this->wire(words[1]) : nullptr;
    if (wire == nullptr) return failure("no such wire");
    schedules_[wire].period = std::strtoll(words[2].c_str(), nullptr, 10);
    return kOk;
}

std::string Control::listen() {
    for (auto& [wire, schedule] : schedules_) {
        if (schedule.period > 0 && !schedule.steps.empty() && schedule.steps.back().at >= schedule.period)
            return failure("a step at or after the period's end");
        wire->schedule(std::move(schedule.steps), schedule.period);
    }
    std::string ports;
    for (std::size_t i = 0; i < doors_.size(); ++i) {
        if (!doors_[i].listener->listen(doors_[i].at)) {
            const int error = errno;
            return failure("listener " + std::to_string(i) + ": " + std::strerror(error), error);
        }
        ports += (i == 0 ? "" : ",") + std::to_string(doors_[i].listener->port());
    }
    return "{\"ok\":true,\"scheduler\":\"" + scheduler_ + "\",\"ports\":[" + ports + "]}";
}

std::string Control::start() {
    const Nanos t = now();
    for (auto& line : lines_) line->wire.restart(t);
    for (auto& link : links_)
        for (int d : {0, 1}) link->direction(d).wire().restart(t);
    return kOk;
}

std::string Control::reset(const Words& words) {
    Link* link = words.size() == 2 ? link_of(words[1]) : nullptr;
    if (link == nullptr) return failure("no such link");
    link->reset();
    return kOk;
}

std::string Control::stats() const {
    std::string out = "{\"ok\":true,\"now_ns\":" + std::to_string(now()) + ",\"links\":[";
    for (std::size_t i = 0; i < links_.size(); ++i) {
        if (i > 0) out += ",";
        links_[i]->report(out);
    }
    out += "],\"lines\":[";
    for (std::size_t i = 0; i < lines_.size(); ++i) {
        const Wire& wire = lines_[i]->wire;
        out += (i == 0 ? "" : ",") + std::string("{\"bytes\":") + std::to_string(wire.bytes()) + ",\"busy_ns\":" +
               std::to_string(wire.busy()) + ",\"bits_per_s\":" + std::to_string(wire.shape().bits_per_s) + ",\"up\":" +
               (wire.shape().up ? "true}" : "false}");
    }
    std::uint64_t strangers = 0;
    for (const Door& door : doors_) strangers += door.listener->strangers();
    return out + "],\"strangers\":" + std::to_string(strangers) + "}";
}

}  // namespace wan
