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

int queued(int fd, unsigned long request) {
    int bytes = 0;
    return fd >= 0 && ioctl(fd, request, &bytes) == 0 ? bytes : 0;
}

}  // namespace

Link::Link(int epoll, std::uint64_t seed)
    : Watched(Kind::listener), epoll_(epoll), spare_(open_spare()), directions_{Direction(2 * seed), Direction(2 * seed + 1)} {}

Link::~Link() {
    for (auto& connection : connections_) close(*connection, true);
    if (listener_ >= 0) ::close(listener_);
    if (spare_ >= 0) ::close(spare_);
}

void Link::target(const sockaddr_storage& address, socklen_t length) {
    target_ = address;
    target_length_ = length;
}

bool Link::listen(const sockaddr_storage& address, socklen_t length) {
    listener_ = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener_ < 0) return false;
    set_option(listener_, SOL_SOCKET, SO_REUSEADDR, 1);
    small_buffers(listener_);  // accepted sockets inherit them, the window is agreed on before accept
    if (bind(listener_, reinterpret_cast<const sockaddr*>(&address), length) != 0) return false;
    if (::listen(listener_, kBacklog) != 0) return false;
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    if (getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return false;
    port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                              : reinterpret_cast<sockaddr_in&>(bound).sin_port);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = static_cast<Watched*>(this);
    return epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event) == 0;
}

// What the kernel holds is a queue that the shape does not see, so it is kept small: about 1 ms of wire. An
// Ethernet-sized segment keeps the window from closing in steps of loopback's 64 KB.
void Link::small_buffers(int fd) const {
    double bits_per_s = 0;
    for (const Direction& direction : directions_) {
        const double asked = direction.shape().bits_per_s;
        bits_per_s = std::max(bits_per_s, asked > 0 ? asked : 10e9);
    }
    const int bytes = static_cast<int>(std::clamp(bits_per_s / 8 / 1000, 16.0 * 1024, 256.0 * 1024));
    set_option(fd, SOL_SOCKET, SO_RCVBUF, bytes);
    set_option(fd, SOL_SOCKET, SO_SNDBUF, bytes);
    set_option(fd, IPPROTO_TCP, TCP_MAXSEG, static_cast<int>(kPacketBytes));
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

void Link::watch(Socket& socket) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.ptr = static_cast<Watched*>(&socket);
    epoll_ctl(epoll_, EPOLL_CTL_ADD, socket.fd, &event);
    set_option(socket.fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
}

void Link::accept() {
    for (;;) {
        const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
            turn_away();
            return;
        }
        if (fd < 0) return;
        ++accepted_;
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        auto owned = std::make_unique<Connection>();
        Connection& connection = *owned;
        connection.link = this;
        for (Socket& socket : connection.sockets) socket.connection = &connection;
        connection.sockets[0].fd = fd;
        connections_.push_back(std::move(owned));
        watch(connection.sockets[0]);
        connect_target(connection);
    }
}

// Out of descriptors: the spare one takes the caller in and shows it out, else epoll would report it for ever.
void Link::turn_away() {
    ::close(spare_);
    const int fd = ::accept(listener_, nullptr, nullptr);
    if (fd >= 0) {
        ++accepted_;
        ++failed_;
        ::close(fd);
    }
    spare_ = open_spare();
}

void Link::connect_target(Connection& connection) {
    Socket& socket = connection.sockets[1];
    socket.fd = ::socket(target_.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (socket.fd >= 0) small_buffers(socket.fd);
    const bool refused = socket.fd < 0 || (connect(socket.fd, reinterpret_cast<sockaddr*>(&target_), target_length_) != 0 &&
                                           errno != EINPROGRESS);
    if (refused) {
        ++failed_;
        close(connection, true);
        return;
    }
    watch(socket);
}

void Link::on_connected(Connection& connection) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection.sockets[1].fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        ++failed_;
        close(connection, true);
        return;
    }
    connection.connected = true;
}

void Link::on_event(Socket& socket, std::uint32_t events) {
    Connection& connection = *socket.connection;
    if (connection.closed) return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) socket.readable = true;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) socket.writable = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) socket.hung_up = true;
    if (!connection.connected && &socket == &connection.sockets[1]) connection.link->on_connected(connection);
}

bool Link::pump() {
    bool more = false;
    for (int d : {0, 1}) {
        directions_[d].advance(now());
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
                return !c->closed && c->connected && c->sockets[d].readable && !c->sockets[d].finished;
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
    if (connection.closed || !connection.connected || !socket.readable || socket.finished) return false;
    Direction& direction = directions_[d];
    const std::size_t want = std::min(quantum_bytes(direction.shape()), scratch.size());
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
        direction.push(connection.pipes[d], {scratch.data(), static_cast<std::size_t>(n)}, Ending::none, arrival(message, t));
        return true;
    }
    if (n < 0 && errno == EINTR) return true;
    if (n < 0 && errno == EAGAIN) {
        socket.readable = false;
        return false;
    }
    socket.finished = true;
    direction.push(connection.pipes[d], {}, n == 0 ? Ending::eof : Ending::reset, t);
    return true;
}

bool Link::deliver(Connection& connection, int d) {
    Socket& target = connection.sockets[1 - d];
    auto& flight = connection.pipes[d].flight;
    bool moved = false;
    while (!connection.closed && !flight.empty()) {
        Chunk& chunk = flight.front();
        const Nanos t = now();
        if (chunk.due > t || !target.writable) break;
        if (chunk.sent == 0 && !target.broken) {
            Lateness& late = lateness_[d];
            ++late.chunks;
            late.sum += t - chunk.due;
            late.max = std::max(late.max, t - chunk.due);
        }
        if (!hand_over(connection, d, chunk)) break;
        moved = true;
        const Ending ending = chunk.ending;
        flight.pop_front();
        if (ending != Ending::none) end(connection, d, ending);
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

void Link::end(Connection& connection, int d, Ending ending) {
    if (ending == Ending::reset) {
        close(connection, true);
        return;
    }
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
        if (reset) {
            const linger now_or_never{1, 0};
            setsockopt(socket.fd, SOL_SOCKET, SO_LINGER, &now_or_never, sizeof now_or_never);
        }
        ::close(socket.fd);
        socket.fd = -1;
    }
}

Nanos Link::next() const {
    Nanos t = std::min(directions_[0].next(), directions_[1].next());
    for (const auto& connection : connections_) {
        for (int d : {0, 1}) {
            const auto& flight = connection->pipes[d].flight;
            if (!flight.empty() && connection->sockets[1 - d].writable) t = std::min(t, flight.front().due);
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
    std::snprintf(text, sizeof text, "{\"connections\":%llu,\"open\":%zu,\"failed\":%llu,\"directions\":[",
                  static_cast<unsigned long long>(accepted_), connections_.size(), static_cast<unsigned long long>(failed_));
    out += text;
    for (int d : {0, 1}) {
        const Direction& direction = directions_[d];
        const Counters& counters = direction.counters();
        const Shape& shape = direction.shape();
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
                      static_cast<long long>(shape.delay), shape.up ? "true" : "false");
        out += text;
    }
    out += "]}";
}

}  // namespace wan
