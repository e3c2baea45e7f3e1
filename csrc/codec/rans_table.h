// A fitted table: per-channel shifts and order, and the symbol frequencies; as in docs/codec.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codec/rans_lane.h"

namespace bloombee::rans {

constexpr size_t digest_bytes = 16;
constexpr uint32_t max_channels = 1u << 20;

struct Table {
    int dtype = 0;
    uint32_t channels = 0;
    int row_bits = 0;      // 0, 4 or 8 bits a row for its offset
    int row_base = 0;      // quarter octaves
    bool ordered = false;  // false: the order is the identity
    uint8_t digest[digest_bytes] = {};
    uint32_t checksum_seed = 0;        // CRC-32C of the digest
    std::vector<uint8_t> phase;        // [groups] position of the group in quarter octaves, 0..3
    std::vector<uint8_t> cluster;      // [groups] 0..3
    std::vector<uint8_t> shift;        // [tiles * 256] whole octaves, in gathered order
    std::vector<uint8_t> order;        // [tiles * 256] gathered position -> channel, both inside the tile
    std::vector<uint8_t> inverse;      // [tiles * 256] channel -> gathered position
    std::vector<SymbolTable> tables;   // [4 * clusters], [cluster * 4 + phase]
    std::vector<VectorTable> vectors;  // likewise

    TableView view() const {
        return {ordered, phase.data(), cluster.data(), shift.data(), order.data(), inverse.data(), tables.data()};
    }

    // A table from its bytes; nullptr and `why` if they are not one. `digest` is what names it on the wire.
    static std::shared_ptr<const Table> parse(const uint8_t* bytes, size_t size, const uint8_t* digest,
                                              std::string& why);
};

}  // namespace bloombee::rans
