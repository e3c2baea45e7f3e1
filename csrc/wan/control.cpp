#include "control.hpp"

#include <netdb.h>
#include <unistd.h>

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

bool resolve(const std::string& host, const std::string& port, sockaddr_storage& address, socklen_t& length) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return false;
    std::memcpy(&address, found->ai_addr, found->ai_addrlen);
    length = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

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
    if (verb == "listen") return listen();
    if (verb == "stats") return stats();
    if (verb == "quit") {
        stopped_ = true;
        return stats();
    }
    if (verb == "start") {
        for (auto& link : links_)
            for (int d : {0, 1}) link->direction(d).restart(now());
        return kOk;
    }
    const std::size_t index = words.size() > 1 ? std::strtoul(words[1].c_str(), nullptr, 10) : links_.size();
    if (index >= links_.size()) return failure("no such link");
    if (verb == "shape") return shape(words, false);
    if (verb == "step") return shape(words, true);
    if (verb == "period" && words.size() == 3) {
        schedules_[index].period = std::strtoll(words[2].c_str(), nullptr, 10);
        return kOk;
    }
    return failure("unknown command");
}

std::string Control::link(const std::vector<std::string>& words) {
    Endpoint listen_at, target;
    if (words.size() != 6 || std::strtoul(words[1].c_str(), nullptr, 10) != links_.size()) return failure("bad link command");
    if (!resolve(words[2], words[3], listen_at.address, listen_at.length)) return failure("not a numeric address to listen at");
    if (!resolve(words[4], words[5], target.address, target.length)) return failure("not a numeric target address");
    links_.push_back(std::make_unique<Link>(epoll_, links_.size() + 1));
    links_.back()->target(target.address, target.length);
    endpoints_.push_back(listen_at);
    schedules_.emplace_back();
    return kOk;
}

std::string Control::shape(const std::vector<std::string>& words, bool is_step) {
    if (words.size() < 3) return failure("bad shape command");
    const std::size_t index = std::strtoul(words[1].c_str(), nullptr, 10);
    const int d = words[2] == "1" ? 1 : 0;
    Step step;
    if (!parse_shape(words, is_step ? 4 : 3, step.shape)) return failure("bad shape");
    if (!is_step) {
        links_[index]->direction(d).set(step.shape, now());
        return kOk;
    }
    step.at = std::strtoll(words[3].c_str(), nullptr, 10);
    auto& steps = schedules_[index].steps[d];
    if (step.at < 0 || (!steps.empty() && step.at < steps.back().at)) return failure("steps out of order");
    steps.push_back(step);
    return kOk;
}

std::string Control::listen() {
    std::string ports;
    for (std::size_t i = 0; i < links_.size(); ++i) {
        Schedule& schedule = schedules_[i];
        for (int d : {0, 1}) {
            if (schedule.period > 0 && !schedule.steps[d].empty() && schedule.steps[d].back().at >= schedule.period)
                return failure("a step at or after the period's end");
            links_[i]->direction(d).schedule(std::move(schedule.steps[d]), schedule.period);
        }
        if (!links_[i]->listen(endpoints_[i].address, endpoints_[i].length)) {
            const int error = errno;
            return failure("link " + std::to_string(i) + ": " + std::strerror(error), error);
        }
        ports += (i == 0 ? "" : ",") + std::to_string(links_[i]->port());
    }
    return "{\"ok\":true,\"scheduler\":\"" + scheduler_ + "\",\"ports\":[" + ports + "]}";
}

std::string Control::stats() const {
    std::string out = "{\"ok\":true,\"now_ns\":" + std::to_string(now()) + ",\"links\":[";
    for (std::size_t i = 0; i < links_.size(); ++i) {
        if (i > 0) out += ",";
        links_[i]->report(out);
    }
    return out + "]}";
}

}  // namespace wan
