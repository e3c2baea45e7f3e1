#include "codec/rans_table.h"

#include <algorithm>
#include <cstring>

#include "codec/checksum.h"

namespace bloombee::rans {
namespace {

class Reader {
  public:
    Reader(const uint8_t* data, size_t size) : at_(data), left_(size) {}
    const uint8_t* take(size_t n) {
        if (n > left_) return nullptr;
        const uint8_t* p = at_;
        at_ += n;
        left_ -= n;
        return p;
    }
    size_t left() const { return left_; }

  private:
    const uint8_t* at_;
    size_t left_;
};

void fill_symbol(SymbolTable& t, VectorTable& v, uint32_t symbol, uint32_t frequency, uint32_t start) {
    t.range[symbol] = frequency << 8 | start;
    for (uint32_t k = 0; k < frequency; ++k) {
        t.slot[start + k] = static_cast<uint8_t>(symbol);
        v.wide_slot[start + k] = symbol << 24 | frequency << 8 | k;
    }
    if (frequency < 2) {  // also what a symbol of frequency 0 gets: never encoded, but defined
        t.reciprocal[symbol] = ~0u;
        t.encode[symbol] = 1u << 23 | (start + 255);
        return;
    }
    const uint32_t bits = static_cast<uint32_t>(bit_length(frequency - 1));  // ceil(log2 frequency)
    t.reciprocal[symbol] = static_cast<uint32_t>(((uint64_t{1} << (bits + 31)) + frequency - 1) / frequency);
    t.encode[symbol] = frequency << 23 | (bits - 1) << 9 | start;
}

bool read_symbols(Reader& in, SymbolTable& t, VectorTable& v, std::string& why) {
    std::memset(&t, 0, sizeof t);
    std::memset(&v, 0, sizeof v);
    const uint8_t* head = in.take(4);
    const uint8_t* window = head ? in.take(head[1]) : nullptr;
    if (!window) return why = "symbol table is cut off", false;
    if (head[1] < 1 || head[1] > max_window) return why = "window of " + std::to_string(head[1]) + " symbols", false;
    if (head[2] == 0) return why = "no frequency for the escape", false;
    t.low = head[0];
    t.window = head[1];
    t.has_zero = v.has_zero = head[3] != 0;
    uint32_t total = head[2] + head[3];
    for (int i = 0; i < t.window; ++i) {
        if (window[i] == 0) return why = "frequency 0 inside the window", false;
        total += window[i];
    }
    if (total != 256) return why = "frequencies sum to " + std::to_string(total), false;
    uint32_t start = 0;
    const auto add = [&](uint32_t symbol, uint32_t frequency) {
        fill_symbol(t, v, symbol, frequency, start);
        if (frequency == 0) return;
        v.rank_frequency[v.num_ranks] = static_cast<uint8_t>(frequency);
        v.rank_start[v.num_ranks] = static_cast<uint8_t>(start);
        v.rank_shift[v.num_ranks] = t.encode[symbol] >> 9 & 7;
        for (int k = 0; k < 4; ++k)
            v.rank_reciprocal[k][v.num_ranks] = static_cast<uint8_t>(t.reciprocal[symbol] >> (8 * k));
        ++v.num_ranks;
        start += frequency;
    };
    add(escape_symbol, head[2]);
    for (int i = 0; i < t.window; ++i) add(1 + i, window[i]);
    for (int symbol = t.window + 1; symbol < zero_symbol; ++symbol) fill_symbol(t, v, symbol, 0, 0);
    add(zero_symbol, head[3]);
    t.fill = static_cast<uint8_t>(1 + (std::max_element(window, window + t.window) - window));
    return true;
}

bool read_channels(Reader& in, Table& t, int shift_bits, uint8_t shift_min, std::string& why) {
    const size_t tiles = (t.channels + tile_channels - 1) / tile_channels, d = t.channels;
    const uint8_t* shifts = in.take(shift_bits == 8 ? d : shift_bits == 4 ? (d + 1) / 2 : 0);
    const uint8_t* order = in.take(t.ordered ? d : 0);
    if (!shifts || !order) return why = "channel section is cut off", false;
    t.order.resize(tiles * tile_channels);
    t.inverse.resize(tiles * tile_channels);
    t.shift.assign(tiles * tile_channels, 0);
    for (size_t i = 0; i < t.order.size(); ++i) t.order[i] = t.inverse[i] = static_cast<uint8_t>(i);
    for (size_t tile = 0; tile < tiles && t.ordered; ++tile) {
        const size_t first = tile * tile_channels, n = std::min<size_t>(tile_channels, d - first);
        bool seen[tile_channels] = {};
        for (size_t j = 0; j < n; ++j) {
            const uint8_t channel = order[first + j];
            if (channel >= n || seen[channel]) return why = "channel order is not a permutation", false;
            seen[channel] = true;
            t.order[first + j] = channel;
            t.inverse[first + channel] = static_cast<uint8_t>(j);
        }
    }
    for (size_t j = 0; j < d; ++j) {
        const size_t channel = j / tile_channels * tile_channels + t.order[j];
        const uint32_t more = shift_bits == 8   ? shifts[channel]
                              : shift_bits == 4 ? (shifts[channel / 2] >> (4 * (channel & 1))) & 15u
                                                : 0;
        t.shift[j] = static_cast<uint8_t>(shift_min + more);
    }
    return true;
}

}  // namespace

std::shared_ptr<const Table> Table::parse(const uint8_t* bytes, size_t size, const uint8_t* digest, std::string& why) {
    Reader in(bytes, size);
    const uint8_t* head = in.take(16);
    const auto bad = [&](const char* what) {
        why = what;
        return nullptr;
    };
    if (!head || head[0] != 'B' || head[1] != 'T' || head[2] != 1) return bad("not a table of version 1");
    auto table = std::make_shared<Table>();
    Table& t = *table;
    t.dtype = head[3];
    std::memcpy(&t.channels, head + 4, 4);
    t.row_base = head[8] | head[9] << 8;
    t.row_bits = head[10];
    t.ordered = head[11] & 1;
    const int shift_code = head[11] >> 1, clusters = head[12];
    if (t.dtype > code_fp32) return bad("dtype that has no exponent");
    if (t.channels < 1 || t.channels > max_channels) return bad("number of channels out of range");
    if (t.row_bits != 0 && t.row_bits != 4 && t.row_bits != 8) return bad("row offsets must have 0, 4 or 8 bits");
    if (shift_code > 2) return bad("unknown flags");
    if (clusters < 1 || clusters > 4) return bad("number of clusters must be 1 to 4");
    if (head[14] != 0 || head[15] != 0) return bad("reserved bytes are not 0");
    const size_t groups = (t.channels + group_values - 1) / group_values;
    const uint8_t* group = in.take(groups);
    if (!group) return bad("group section is cut off");
    for (size_t g = 0; g < groups; ++g) {
        if (group[g] >= 4 * clusters) return bad("group of a cluster that is not there");
        t.phase.push_back(group[g] & 3);
        t.cluster.push_back(group[g] >> 2);
    }
    if (!read_channels(in, t, 4 * shift_code, head[13], why)) return nullptr;
    t.tables.resize(4 * clusters);
    t.vectors.resize(4 * clusters);
    for (size_t i = 0; i < t.tables.size(); ++i)
        if (!read_symbols(in, t.tables[i], t.vectors[i], why)) return nullptr;
    if (in.left() != 0) return bad("bytes after the end");
    std::memcpy(t.digest, digest, digest_bytes);
    t.checksum_seed = crc32c(digest, digest_bytes, 0);
    return table;
}

}  // namespace bloombee::rans
