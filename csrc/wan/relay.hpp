// Links on real sockets. A Listener accepts TCP connections on one port and puts each on the link that leads from its caller to
// the listener's target; the link relays it through two Directions, whichever end dialled.
//
// A connection pays for its beginning: the caller's first byte waits until a SYN has gone forward and its answer has come back, the
// target's until the caller's acknowledgement is there. (The kernel has accepted the caller by then; it is only its bytes that wait.)
//
// Sockets are edge-triggered: each keeps the flags `readable` and `writable` until the kernel says EAGAIN, so stopping
// to read (back-pressure) and going on again are plain reads of a flag, without a system call.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "direction.hpp"
#include "units.hpp"

namespace wan {

class Link;
struct Connection;

// What epoll hands back.
struct Watched {
    enum class Kind : std::uint8_t { timer, control, listener, socket };
    Kind kind;
    explicit Watched(Kind k) : kind(k) {}
};

struct Socket : Watched {
    Socket() : Watched(Kind::socket) {}
    int fd = -1;
    Connection* connection = nullptr;
    bool readable = false;
    bool writable = false;
    bool hung_up = false;   // FIN or error seen: read on until recv says so
    bool finished = false;  // nothing more will be read from here
    bool broken = false;    // cannot be written to any more; what is due there is dropped
};

struct Endpoint {
    sockaddr_storage address{};
    socklen_t length = 0;
};

struct Connection {
    Link* link = nullptr;
    std::array<Socket, 2> sockets;  // at the two ends of the link
    std::array<Pipe, 2> pipes;      // [0] forward: sockets[0] -> sockets[1]
    int caller = 0;                 // the end that dialled
    Endpoint target;                // that the other one is
    std::array<bool, 2> open{};     // that end may be read from
    std::array<bool, 2> ended{};    // the pipe delivered its end
    bool connected = false;         // to the target
    bool closed = false;
};

struct Lateness {
    std::uint64_t chunks = 0;
    Nanos sum = 0;
    Nanos max = 0;
};

class Link {
  public:
    Link(int epoll, std::uint64_t seed);
    ~Link();
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    // Takes over `fd`, accepted from the link's end `caller`; the other end is `target`.
    void adopt(int fd, int caller, const Endpoint& target);
    // Somebody was turned away.
    void refused();
    // RST to both ends of every connection; what is on its way is lost.
    void reset();
    static void on_event(Socket& socket, std::uint32_t events);
    // Moves everything that may move by now; true if more may move at once.
    bool pump();
    // When the link next has something to do by itself.
    Nanos next() const;
    // Frees connections that ended; not while events may still name them.
    void bury();

    Direction& direction(int d) { return directions_[d]; }
    // Of the wider direction; 0: unlimited.
    double bits_per_s() const;
    // Appends one JSON object.
    void report(std::string& out) const;

  private:
    void connect_target(Connection& connection);
    void on_connected(Connection& connection);
    void refuse(Connection& connection);
    bool read(int d);
    bool read_from(Connection& connection, int d, Nanos t);
    bool deliver(Connection& connection, int d);
    bool hand_over(Connection& connection, int d, Chunk& chunk);
    void obey(Connection& connection, int d, Sign sign);
    void end(Connection& connection, int d);
    void close(Connection& connection, bool reset);
    void watch(Socket& socket);

    int epoll_;
    std::array<Direction, 2> directions_;
    std::array<std::size_t, 2> turn_{};
    std::array<Nanos, 2> full_since_{0, 0};
    std::array<Nanos, 2> full_{0, 0};
    std::array<Lateness, 2> lateness_{};
    std::vector<std::unique_ptr<Connection>> connections_;
    std::vector<std::unique_ptr<Connection>> dead_;
    std::uint64_t accepted_ = 0;
    std::uint64_t failed_ = 0;
    std::uint64_t resets_ = 0;
};

class Listener : public Watched {
  public:
    Listener(int epoll, const Endpoint& target);
    ~Listener();
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

    // Callers from the address `source` (its port does not count; null: from anywhere) dial from end `side` of `link`.
    void route(Link& link, int side, const Endpoint* source);
    // Binds and listens; errno says why not.
    bool listen(const Endpoint& at);
    int port() const { return port_; }
    void accept();
    // Callers from addresses without a route, which were reset.
    std::uint64_t strangers() const { return strangers_; }

  private:
    struct Route {
        Link* link;
        int side;
        bool from_anywhere;
        Endpoint source;
    };

    const Route* route_of(const sockaddr_storage& caller) const;
    void turn_away();

    int epoll_;
    int fd_ = -1;
    int spare_;
    int port_ = 0;
    Endpoint target_;
    std::vector<Route> routes_;
    std::uint64_t strangers_ = 0;
};

}  // namespace wan
