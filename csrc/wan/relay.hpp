// Links on real sockets: each accepts TCP connections on one port and relays them to one target through two
// Directions (forward: from whoever dialled; backward: the answers).
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

struct Connection {
    Link* link = nullptr;
    std::array<Socket, 2> sockets;  // [0] who dialled, [1] the target
    std::array<Pipe, 2> pipes;      // [0] forward: sockets[0] -> sockets[1]
    std::array<bool, 2> ended{};    // the pipe delivered its end
    bool connected = false;
    bool closed = false;
};

struct Lateness {
    std::uint64_t chunks = 0;
    Nanos sum = 0;
    Nanos max = 0;
};

class Link : public Watched {
  public:
    Link(int epoll, std::uint64_t seed);
    ~Link();
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    void target(const sockaddr_storage& address, socklen_t length);
    // Binds and listens; errno says why not.
    bool listen(const sockaddr_storage& address, socklen_t length);
    int port() const { return port_; }

    void accept();
    static void on_event(Socket& socket, std::uint32_t events);
    // Moves everything that may move by now; true if more may move at once.
    bool pump();
    // When the link next has something to do by itself.
    Nanos next() const;
    // Frees connections that ended; not while events may still name them.
    void bury();

    Direction& direction(int d) { return directions_[d]; }
    // Appends one JSON object.
    void report(std::string& out) const;

  private:
    void turn_away();
    void connect_target(Connection& connection);
    void on_connected(Connection& connection);
    bool read(int d);
    bool read_from(Connection& connection, int d, Nanos t);
    bool deliver(Connection& connection, int d);
    bool hand_over(Connection& connection, int d, Chunk& chunk);
    void end(Connection& connection, int d, Ending ending);
    void close(Connection& connection, bool reset);
    void watch(Socket& socket);
    void small_buffers(int fd) const;

    int epoll_;
    int spare_;
    int listener_ = -1;
    int port_ = 0;
    sockaddr_storage target_{};
    socklen_t target_length_ = 0;
    std::array<Direction, 2> directions_;
    std::array<std::size_t, 2> turn_{};
    std::array<Nanos, 2> full_since_{0, 0};
    std::array<Nanos, 2> full_{0, 0};
    std::array<Lateness, 2> lateness_{};
    std::vector<std::unique_ptr<Connection>> connections_;
    std::vector<std::unique_ptr<Connection>> dead_;
    std::uint64_t accepted_ = 0;
    std::uint64_t failed_ = 0;
};

}  // namespace wan
