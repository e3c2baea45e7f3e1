#include "relay.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace wan {

namespace {

constexpr std::size_t kScratchBytes = 32 * 1024;
constexpr int kBacklog = 128;
constexpr Nanos kMaxAge = kMillisecond;

void set_option(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); }

// The time at which the kernel got the last of the bytes that `message` holds: a reader that wakes late starts their
// delay no later. Without a stamp, or with an old one (the bytes stood in the buffer because the link was full), `t`.
Nanos arrival(msghdr& message, Nanos t) {
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_TIMESTAMPNS) continue;
        timespec stamp{}, wall{};
        std::memcpy(&stamp, CMSG_DATA(part), sizeof stamp);
        clock_gettime(CLOCK_REALTIME, &wall);
        const Nanos age = (wall.tv_sec - stamp.tv_sec) * kSecond + (wall.tv_nsec - stamp.tv_nsec);
        if (age > 0 && age < kMaxAge) return t - age;
    }
    return t;
}

int open_spare() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

void reset_on_close(int fd) {
    const linger now_or_never{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now_or_never, sizeof now_or_never);
}

bool same_host(const sockaddr_storage& left, const sockaddr_storage& right) {
    if (left.ss_family != right.ss_family) return false;
    if (left.ss_family == AF_INET6)
        return std::memcmp(&reinterpret_cast<const sockaddr_in6&>(left).sin6_addr,
                           &reinterpret_cast<const sockaddr_in6&>(right).sin6_addr, sizeof(in6_addr)) == 0;
    return reinterpret_cast<const sockaddr_in&>(left).sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in&>(right).sin_addr.s_addr;
}

// What the kernel holds is a queue that the shape does not see, so it is kept small: about 1 ms of wire. An
// Ethernet-sized segment keeps the window from closing in steps of loopback's 64 KB.
void small_buffers(int fd, double bits_per_s) {
    const double rate = bits_per_s > 0 ? bits_per_s : 10e9;
    const int bytes = static_cast<int>(std::clamp(rate / 8 / 1000, 16.0 * 1024, 256.0 * 1024));
    set_option(fd, SOL_SOCKET, SO_RCVBUF, bytes);
    set_option(fd, SOL_SOCKET, SO_SNDBUF, bytes);
    set_option(fd, IPPROTO_TCP, TCP_MAXSEG, static_cast<int>(kPacketBytes));
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

int queued(int fd, unsigned long request) {
    int bytes = 0;
    return fd >= 0 && ioctl(fd, request, &bytes) == 0 ? bytes : 0;
}

// Signs need no room in the target's socket.
bool can_take(const Socket& target, const Chunk& chunk) { return target.writable || chunk.bytes.empty(); }

}  // namespace

Link::Link(int epoll, std::uint64_t seed) : epoll_(epoll), directions_{Direction(2 * seed), Direction(2 * seed + 1)} {}

Link::~Link() { reset(); }

double Link::bits_per_s() const {
    double widest = 0;
    for (const Direction& direction : directions_) {
        const double asked = direction.narrowest().bits_per_s;
        if (asked <= 0) return 0;
        widest = std::max(widest, asked);
    }
    return widest;
}

void Link::watch(Socket& socket) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.ptr = static_cast<Watched*>(&socket);
    epoll_ctl(epoll_, EPOLL_CTL_ADD, socket.fd, &event);
    set_option(socket.fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
}

void Link::adopt(int fd, int caller, const Endpoint& target) {
    ++accepted_;
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    auto owned = std::make_unique<Connection>();
    Connection& connection = *owned;
    connection.link = this;
    connection.caller = caller;
    connection.target = target;
    for (Socket& socket : connection.sockets) socket.connection = &connection;
    connection.sockets[caller].fd = fd;
    connections_.push_back(std::move(owned));
    watch(connection.sockets[caller]);
    directions_[caller].push(connection.pipes[caller], {}, Sign::syn, now());
}

void Link::refused() {
    ++accepted_;
    ++failed_;
}

void Link::reset() {
    for (auto& connection : connections_) {
        if (connection->closed) continue;
        ++resets_;
        close(*connection, true);
    }
}

void Link::connect_target(Connection& connection) {
    Socket& socket = connection.sockets[1 - connection.caller];
    const Endpoint& target = connection.target;
    socket.fd = ::socket(target.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (socket.fd >= 0) small_buffers(socket.fd, bits_per_s());
    const bool failed = socket.fd < 0 || (connect(socket.fd, reinterpret_cast<const sockaddr*>(&target.address), target.length) != 0 &&
                                          errno != EINPROGRESS);
    if (failed) {
        refuse(connection);
        return;
    }
    watch(socket);
}

void Link::on_connected(Connection& connection) {
    int error = 0;
    socklen_t size = sizeof error;
    const int target = 1 - connection.caller;
    getsockopt(connection.sockets[target].fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        refuse(connection);
        return;
    }
    connection.connected = true;
    directions_[target].push(connection.pipes[target], {}, Sign::syn_ack, now());
}

// The target does not listen: its RST travels back as the answer would.
void Link::refuse(Connection& connection) {
    ++failed_;
    const int target = 1 - connection.caller;
    connection.sockets[target].broken = true;
    directions_[target].push(connection.pipes[target], {}, Sign::reset, now());
}

void Link::on_event(Socket& socket, std::uint32_t events) {
    Connection& connection = *socket.connection;
    if (connection.closed) return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) socket.readable = true;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) socket.writable = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) socket.hung_up = true;
    const bool is_target = &socket == &connection.sockets[1 - connection.caller];
    if (is_target && !connection.connected && !socket.broken) connection.link->on_connected(connection);
}

bool Link::pump() {
    bool more = false;
    for (Direction& direction : directions_) direction.advance(now());
    const bool forward = directions_[0].take_reset(), backward = directions_[1].take_reset();
    if (forward || backward) reset();
    for (int d : {0, 1}) {
        for (auto& connection : connections_) more |= deliver(*connection, d);
        more |= read(d);
        for (auto& connection : connections_) more |= deliver(*connection, d);
    }
    return more;
}

// Reads, one quantum per connection in turn, until the direction is full or the sockets are empty.
bool Link::read(int d) {
    Direction& direction = directions_[d];
    const std::size_t count = connections_.size();
    bool blocked = false;
    std::size_t idle = 0;
    // At most the floor in one go, so that no direction starves the others.
    for (std::size_t budget = kFloorBytes / kPacketBytes; budget > 0 && idle < count; --budget) {
        if (!direction.can_push()) {
            blocked = std::any_of(connections_.begin(), connections_.end(), [d](const auto& c) {
                return !c->closed && c->open[d] && c->sockets[d].readable && !c->sockets[d].finished;
            });
            break;
        }
        Connection& connection = *connections_[turn_[d]++ % count];
        idle = read_from(connection, d, now()) ? 0 : idle + 1;
    }
    if (blocked && full_since_[d] == 0) full_since_[d] = now();
    if (!blocked && full_since_[d] != 0) full_[d] += now() - std::exchange(full_since_[d], 0);
    return !blocked && idle < count;
}

bool Link::read_from(Connection& connection, int d, Nanos t) {
    static std::array<std::byte, kScratchBytes> scratch;
    Socket& socket = connection.sockets[d];
    if (connection.closed || !connection.open[d] || !socket.readable || socket.finished) return false;
    Direction& direction = directions_[d];
    const std::size_t want = std::min(quantum_bytes(direction.narrowest()), scratch.size());
    alignas(cmsghdr) std::array<char, 128> control;
    iovec part{scratch.data(), want};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = recvmsg(socket.fd, &message, 0);
    if (n > 0) {
        // A short read has emptied the socket, unless its end is still to be read.
        if (static_cast<std::size_t>(n) < want && !socket.hung_up) socket.readable = false;
        direction.push(connection.pipes[d], {scratch.data(), static_cast<std::size_t>(n)}, Sign::none, arrival(message, t));
        return true;
    }
    if (n < 0 && errno == EINTR) return true;
    if (n < 0 && errno == EAGAIN) {
        socket.readable = false;
        return false;
    }
    socket.finished = true;
    direction.push(connection.pipes[d], {}, n == 0 ? Sign::eof : Sign::reset, t);
    return true;
}

bool Link::deliver(Connection& connection, int d) {
    Socket& target = connection.sockets[1 - d];
    auto& flight = connection.pipes[d].flight;
    bool moved = false;
    while (!connection.closed && !flight.empty()) {
        Chunk& chunk = flight.front();
        const Nanos t = now();
        if (chunk.due > t || !can_take(target, chunk)) break;
        if (chunk.sent == 0 && !target.broken) {
            Lateness& late = lateness_[d];
            ++late.chunks;
            late.sum += t - chunk.due;
            late.max = std::max(late.max, t - chunk.due);
        }
        if (!hand_over(connection, d, chunk)) break;
        moved = true;
        const Sign sign = chunk.sign;
        flight.pop_front();
        obey(connection, d, sign);
    }
    return moved;
}

// True when all of the chunk is gone.
bool Link::hand_over(Connection& connection, int d, Chunk& chunk) {
    Socket& target = connection.sockets[1 - d];
    while (chunk.sent < chunk.bytes.size()) {
        const std::size_t left = chunk.bytes.size() - chunk.sent;
        ssize_t n = target.broken ? static_cast<ssize_t>(left) : send(target.fd, &chunk.bytes[chunk.sent], left, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            target.writable = false;
            return false;
        }
        if (n < 0) {  // the target is gone; its own read says so to the other side
            target.broken = true;
            continue;
        }
        chunk.sent += static_cast<std::size_t>(n);
        directions_[d].handed_over(static_cast<std::size_t>(n));
    }
    return true;
}

// A sign has come to the end of pipe `d`.
void Link::obey(Connection& connection, int d, Sign sign) {
    switch (sign) {
        case Sign::none: return;
        case Sign::eof: end(connection, d); return;
        case Sign::reset: close(connection, true); return;
        case Sign::syn: connect_target(connection); return;
        case Sign::syn_ack:
            connection.open[connection.caller] = true;
            directions_[1 - d].push(connection.pipes[1 - d], {}, Sign::ack, now());
            return;
        case Sign::ack: connection.open[1 - connection.caller] = true; return;
    }
}

void Link::end(Connection& connection, int d) {
    shutdown(connection.sockets[1 - d].fd, SHUT_WR);
    connection.ended[d] = true;
    if (connection.ended[0] && connection.ended[1]) close(connection, false);
}

void Link::close(Connection& connection, bool reset) {
    if (connection.closed) return;
    connection.closed = true;
    for (int d : {0, 1}) directions_[d].forget(connection.pipes[d]);
    for (Socket& socket : connection.sockets) {
        if (socket.fd < 0) continue;
        if (reset) reset_on_close(socket.fd);
        ::close(socket.fd);
        socket.fd = -1;
    }
}

Nanos Link::next() const {
    Nanos t = std::min(directions_[0].next(), directions_[1].next());
    for (const auto& connection : connections_) {
        for (int d : {0, 1}) {
            const auto& flight = connection->pipes[d].flight;
            if (!flight.empty() && can_take(connection->sockets[1 - d], flight.front())) t = std::min(t, flight.front().due);
        }
    }
    return t;
}

void Link::bury() {
    dead_.clear();
    for (auto& connection : connections_)
        if (connection->closed) dead_.push_back(std::move(connection));
    std::erase(connections_, nullptr);
}

void Link::report(std::string& out) const {
    char text[1024];
    std::snprintf(text, sizeof text, "{\"connections\":%llu,\"open\":%zu,\"failed\":%llu,\"resets\":%llu,\"directions\":[",
                  static_cast<unsigned long long>(accepted_), connections_.size(), static_cast<unsigned long long>(failed_),
                  static_cast<unsigned long long>(resets_));
    out += text;
    for (int d : {0, 1}) {
        const Direction& direction = directions_[d];
        const Counters counters = direction.counters();
        const Shape shape = direction.narrowest();
        const Lateness& late = lateness_[d];
        int kernel = 0;
        for (const auto& connection : connections_)
            kernel += queued(connection->sockets[d].fd, SIOCINQ) + queued(connection->sockets[1 - d].fd, SIOCOUTQ);
        const Nanos full = full_[d] + (full_since_[d] != 0 ? now() - full_since_[d] : 0);
        std::snprintf(text, sizeof text,
                      "%s{\"bytes_in\":%llu,\"bytes_out\":%llu,\"busy_ns\":%lld,\"losses\":%llu,\"queued_bytes\":%zu,"
                      "\"waiting_bytes\":%zu,\"max_queued_bytes\":%zu,\"limit_bytes\":%zu,\"kernel_bytes\":%d,\"full_ns\":%lld,"
                      "\"late_chunks\":%llu,\"late_sum_ns\":%lld,\"late_max_ns\":%lld,\"bits_per_s\":%.0f,\"delay_ns\":%lld,\"up\":%s}",
                      d == 0 ? "" : ",", static_cast<unsigned long long>(counters.bytes_in),
                      static_cast<unsigned long long>(counters.bytes_out), static_cast<long long>(counters.busy),
                      static_cast<unsigned long long>(counters.losses), direction.held(), direction.waiting(), counters.max_held,
                      limit_bytes(shape), kernel, static_cast<long long>(full), static_cast<unsigned long long>(late.chunks),
                      static_cast<long long>(late.sum), static_cast<long long>(late.max), shape.bits_per_s,
                      static_cast<long long>(shape.delay), direction.is_up() ? "true" : "false");
        out += text;
    }
    out += "]}";
}

Listener::Listener(int epoll, const Endpoint& target)
    : Watched(Kind::listener), epoll_(epoll), spare_(open_spare()), target_(target) {}

Listener::~Listener() {
    if (fd_ >= 0) ::close(fd_);
    if (spare_ >= 0) ::close(spare_);
}

void Listener::route(Link& link, int side, const Endpoint* source) {
    routes_.push_back({&link, side, source == nullptr, source == nullptr ? Endpoint{} : *source});
}

bool Listener::listen(const Endpoint& at) {
    fd_ = socket(at.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd_ < 0) return false;
    set_option(fd_, SOL_SOCKET, SO_REUSEADDR, 1);
    double widest = 1;
    for (const Route& route : routes_) {
        const double asked = route.link->bits_per_s();
        widest = widest > 0 && asked > 0 ? std::max(widest, asked) : 0;
    }
    small_buffers(fd_, widest);  // accepted sockets inherit them, the window is agreed on before accept
    if (bind(fd_, reinterpret_cast<const sockaddr*>(&at.address), at.length) != 0) return false;
    if (::listen(fd_, kBacklog) != 0) return false;
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    if (getsockname(fd_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return false;
    port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                              : reinterpret_cast<sockaddr_in&>(bound).sin_port);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = static_cast<Watched*>(this);
    return epoll_ctl(epoll_, EPOLL_CTL_ADD, fd_, &event) == 0;
}

const Listener::Route* Listener::route_of(const sockaddr_storage& caller) const {
    const auto found = std::find_if(routes_.begin(), routes_.end(), [&](const Route& route) {
        return route.from_anywhere || same_host(route.source.address, caller);
    });
    return found == routes_.end() ? nullptr : &*found;
}

void Listener::accept() {
    for (;;) {
        sockaddr_storage caller{};
        socklen_t size = sizeof caller;
        const int fd = accept4(fd_, reinterpret_cast<sockaddr*>(&caller), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
            turn_away();
            return;
        }
        if (fd < 0) return;
        const Route* route = route_of(caller);
        if (route == nullptr) {
            ++strangers_;
            reset_on_close(fd);
            ::close(fd);
            continue;
        }
        route->link->adopt(fd, route->side, target_);
    }
}

// Out of descriptors: the spare one takes the caller in and shows it out, else epoll would report it for ever.
void Listener::turn_away() {
    ::close(spare_);
    sockaddr_storage caller{};
    socklen_t size = sizeof caller;
    const int fd = ::accept(fd_, reinterpret_cast<sockaddr*>(&caller), &size);
    if (fd >= 0) {
        if (const Route* route = route_of(caller)) route->link->refused();
        ::close(fd);
    }
    spare_ = open_spare();
}

}  // namespace wan
