// Fuzzes the activation codec. With clang: -fsanitize=fuzzer,address,undefined. With any other compiler:
// -DSTANDALONE, which brings a small driver of its own (arguments: number of inputs, seed).
//
// An input is [what, dtype, isa, rows, channels, table, unit_log2, seed] and then bytes for it. Every buffer is a heap
// block of exactly the size that the codec was told, so that the sanitizer sees a step outside.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "codec/rans.h"
#include "codec/rans_lanes.h"
#include "core/isa.h"

using namespace bloombee;
using rans::Shape;
using rans::Table;
using TablePtr = std::shared_ptr<const Table>;
using Bytes = std::vector<uint8_t>;

namespace {

struct Random {
    uint64_t state;
    uint32_t operator()(uint32_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>((state >> 33) % below);
    }
};

// Bytes of a table that is valid; its parts vary with `random`.
Bytes table_bytes(int dtype, uint32_t channels, Random& random) {
    const int clusters = 1 + static_cast<int>(random(4)), shift_code = static_cast<int>(random(3));
    const bool ordered = random(2);
    const int row_bits = static_cast<int>(random(3)) * 4, base = dtype == rans::code_fp16 ? 15 : 126;
    Bytes b = {'B', 'T', 1, static_cast<uint8_t>(dtype)};
    for (int k = 0; k < 4; ++k) b.push_back(static_cast<uint8_t>(channels >> (8 * k)));
    b.push_back(static_cast<uint8_t>(4 * base));
    b.push_back(static_cast<uint8_t>(4 * base >> 8));
    for (int x : {row_bits, int{ordered} | shift_code << 1, clusters, base - shift_code, 0, 0})
        b.push_back(static_cast<uint8_t>(x));
    for (uint32_t g = 0; g < (channels + 63) / 64; ++g) b.push_back(static_cast<uint8_t>(random(4 * clusters)));
    const uint32_t shifts = shift_code == 2 ? channels : shift_code == 1 ? (channels + 1) / 2 : 0;
    for (uint32_t i = 0; i < shifts; ++i) b.push_back(static_cast<uint8_t>(random(3) * (shift_code == 1 ? 17 : 1)));
    for (uint32_t tile = 0; ordered && tile < channels; tile += 256) {
        const uint32_t n = std::min(256u, channels - tile);
        for (uint32_t i = 0; i < n; ++i) b.push_back(static_cast<uint8_t>(n - 1 - i));
    }
    for (int t = 0; t < 4 * clusters; ++t) {
        const int window = 1 + static_cast<int>(random(30)), zero = static_cast<int>(random(2)) * 3;
        b.push_back(static_cast<uint8_t>(250));
        b.push_back(static_cast<uint8_t>(window));
        b.push_back(static_cast<uint8_t>(256 - zero - 7 * window));  // 7 each: at most 210
        b.push_back(static_cast<uint8_t>(zero));
        b.insert(b.end(), static_cast<size_t>(window), 7);
    }
    return b;
}

TablePtr parse(const Bytes& bytes) {
    std::string why;
    uint8_t digest[rans::digest_bytes] = {1, 2, 3, 4};
    return Table::parse(bytes.data(), bytes.size(), digest, why);
}

void check(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::abort();
}

// A valid table for a shape, made once.
const std::pair<Bytes, TablePtr>& known_table(const Shape& shape, uint8_t seed) {
    static std::map<std::tuple<int, uint64_t, uint8_t>, std::pair<Bytes, TablePtr>> made;
    auto& entry = made[{shape.dtype, shape.channels, seed}];
    if (!entry.second) {
        Random random{seed};
        entry.first = table_bytes(shape.dtype, static_cast<uint32_t>(shape.channels), random);
        entry.second = parse(entry.first);
        check(entry.second != nullptr, "table parses");
    }
    return entry;
}

// Decodes what may be anything. The device's code must come to the same end, by values as well as by refusal.
void decode_any(const Shape& shape, const Bytes& message, const Table* table, bool verify) {
    Bytes values(shape.num_bytes()), by_lanes(shape.num_bytes());
    const char* why =
        rans::decode(shape, message.data(), message.size(), table, values.data(), shape.row_bytes(), verify);
    if (verify || message.size() < 12 || message[0] != 0x11 || message.size() % 2) return;
    const bool ok =
        rans::decode_by_lanes(shape, message.data(), message.size(), *table, by_lanes.data(), shape.row_bytes());
    check(ok == (why == nullptr), "host and device code agree");
    check(!ok || values == by_lanes, "host and device code give the same values");
}

// Values like activations, or `extra`'s bytes over and over.
Bytes values_for(const Shape& shape, const uint8_t* extra, size_t size, Random& random) {
    Bytes values(shape.num_bytes());
    const size_t element = rans::element_size(shape.dtype);
    const bool bytes = size > 0 && random(2);
    for (size_t i = 0; i < values.size(); ++i) values[i] = bytes ? extra[i % size] : static_cast<uint8_t>(random(256));
    for (size_t i = element - 1; !bytes && i < values.size(); i += element)
        values[i] = static_cast<uint8_t>((values[i] & 0x80) | (shape.dtype == rans::code_fp16 ? 0x38 : 0x3f));
    return values;
}

// Encodes, decodes, compares; then decodes damaged copies.
void round_trip(const Shape& shape, const Bytes& values, const Table* table, int unit_log2, const uint8_t* extra,
                size_t size, Random& random) {
    Bytes message(rans::bound(shape.num_bytes()));
    const size_t used = rans::encode(shape, values.data(), shape.row_bytes(), table, unit_log2, message.data());
    check(used <= message.size(), "bound");
    message.resize(used);
    Bytes out(shape.num_bytes());
    const char* why = rans::decode(shape, message.data(), message.size(), table, out.data(), shape.row_bytes());
    check(why == nullptr, "decodes");
    check(out == values, "exact");
    if (message[0] == 0x11) {
        Bytes by_lanes(rans::bound(shape.num_bytes()));
        by_lanes.resize(rans::encode_by_lanes(shape, values.data(), shape.row_bytes(), *table, unit_log2,
                                              !(message[2] & 0x10), !(message[2] & 0x20), by_lanes.data()));
        check(by_lanes == message, "host and device code give the same message");
    }
    for (size_t i = 0; i + 1 < size && i < 6; i += 2) {
        Bytes bad = message;
        for (int k = 0; k <= extra[i] % 3; ++k) {
            const size_t at = random(2)
                                  ? bad.size() - 1 - random(static_cast<uint32_t>(std::min<size_t>(bad.size(), 200)))
                                  : random(static_cast<uint32_t>(bad.size()));
            bad[at] ^= static_cast<uint8_t>(extra[i + 1] | 1);
        }
        if (extra[i] & 0x80) bad.resize(random(static_cast<uint32_t>(bad.size() + 1)));
        if (extra[i] & 0x40) bad.push_back(extra[i + 1]);
        bad.shrink_to_fit();
        decode_any(shape, bad, table, false);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 8) return 0;
    Random random{data[7]};
    static const uint32_t widths[] = {1, 5, 16, 64, 65, 100, 128, 200, 256, 257, 320, 384, 512, 700, 1024, 5000};
    const Shape shape{data[3] % 40u, widths[data[4] % 16], data[1] % 3};
    const int unit_log2 = 8 + data[6] % 7;
    set_isa(static_cast<Isa>(data[2] % (static_cast<int>(best_isa()) + 1)));
    const uint8_t* extra = data + 8;
    size -= 8;
    // Small matrices mostly: many inputs a second find more than few large ones.
    if (shape.rows * shape.channels > (data[7] % 64 == 0 ? 20000u : 700u)) return 0;
    const auto& [blob, table] = known_table(shape, data[5] % 16);
    switch (data[0] % 4) {
        case 0: {  // arbitrary bytes as a message, with and without a plausible head
            Bytes message(extra, extra + size);
            decode_any(shape, message, table.get(), true);
            if (message.size() >= 12) {
                const int lanes = rans::lanes_for(shape.rows * shape.channels);
                message[0] = 0x11;
                message[1] = static_cast<uint8_t>(shape.dtype | (lanes == 8 ? 0 : lanes == 16 ? 1 : 2) << 2);
                message[2] = static_cast<uint8_t>(unit_log2 | (shape.dtype == rans::code_fp32 ? message[2] & 0x30 : 0));
                std::memcpy(&message[8], table->digest, 4);
                decode_any(shape, message, table.get(), false);
            }
            break;
        }
        case 1: {  // arbitrary bytes as a table; what parses must work
            const TablePtr other = parse(Bytes(extra, extra + size));
            if (other && other->channels <= 5000) {
                const Shape fit{1 + data[3] % 3u, other->channels, other->dtype};
                round_trip(fit, values_for(fit, extra, size, random), other.get(), unit_log2, extra, size, random);
            }
            break;
        }
        case 2: {  // a damaged table
            Bytes bad = blob;
            for (size_t i = 0; i + 1 < size && i < 6; i += 2)
                bad[random(static_cast<uint32_t>(bad.size()))] ^= extra[i];
            const TablePtr other = parse(bad);
            if (other && other->channels <= 5000) {
                const Shape fit{1 + data[3] % 3u, other->channels, other->dtype};
                round_trip(fit, values_for(fit, extra, size, random), other.get(), unit_log2, extra, size, random);
            }
            break;
        }
        default:
            round_trip(shape, values_for(shape, extra, size, random), table.get(), unit_log2, extra, size, random);
    }
    return 0;
}

#ifdef STANDALONE
int main(int argc, char** argv) {
    const long count = argc > 1 ? std::atol(argv[1]) : 10000;
    Random random{argc > 2 ? static_cast<uint64_t>(std::atol(argv[2])) : 1};
    for (long n = 0; n < count; ++n) {
        Bytes input(8 + random(300));
        for (uint8_t& byte : input) byte = static_cast<uint8_t>(random(256));
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%ld inputs\n", count);
}
#endif
