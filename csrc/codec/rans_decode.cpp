#include "codec/rans_message.h"

namespace bloombee::rans {
namespace {

class Decoder {
  public:
    Decoder(const uint8_t* message, size_t size, const Table& table, const Layout& layout, uint8_t* values,
            size_t stride)
        : ops_(current_ops()),
          message_(message),
          size_(size),
          t_(table),
          view_(table.view()),
          a_(layout),
          values_(values),
          stride_(stride) {}

    const char* run() {
        const bool single = a_.num_units == 1;
        const size_t trailer = single ? 0 : a_.num_units * directory_entry_bytes;
        if (a_.num_units > size_ || size_ < a_.units || size_ - a_.units < trailer)
            return "message is too short for its shape";
        const uint8_t* const directory = message_ + size_ - trailer;
        const uint8_t* at = message_ + a_.units;
        Scratch* const s = scratch();
        for (uint64_t index = 0; index < a_.num_units;) {
            Piece pieces[max_units];
            const int num = batch_at(ops_, a_, index);
            for (int k = 0; k < num; ++k, ++index) {
                Piece& p = pieces[k];
                p.unit = a_.unit(index);
                const uint32_t entry = single ? 0 : load<uint32_t>(directory + index * directory_entry_bytes);
                const size_t size = single ? static_cast<size_t>(directory - at) : entry & 0x3ffff;
                p.num_escapes = single ? message_[3] : entry >> 18;
                if (size > static_cast<size_t>(directory - at)) return "unit reaches beyond the message";
                p.begin = at;
                p.end = at += size;
                if (const char* why = prepare(p, s[k])) return why;
            }
            if (!decode_words(pieces, num, s)) return "words do not end where their unit starts";
            for (int k = 0; k < num; ++k)
                if (const char* why = finish(pieces[k], s[k])) return why;
        }
        return at == directory ? nullptr : "bytes between the units and the directory";
    }

  private:
    struct Piece {
        Unit unit;
        const uint8_t *begin, *end;  // of the unit
        const uint8_t* words_end;    // words are [begin, words_end)
        const uint8_t* escapes;
        uint32_t num_escapes;
        bool raw() const { return num_escapes == raw_unit; }
    };

    // Finds the parts of a unit, and which table each of its blocks uses.
    const char* prepare(Piece& p, Scratch& s) {
        const Unit& u = p.unit;
        const size_t size = static_cast<size_t>(p.end - p.begin);
        if (p.raw()) {
            const size_t plain = u.seeds + u.values();
            if (size != plain + (plain & 1)) return "raw unit of the wrong size";
            std::memcpy(s.seeds, p.begin, u.seeds);
            return nullptr;
        }
        const uint8_t* const packed = unpack_states(p.begin, p.end, a_.lanes, s.states);
        if (!packed) return "states do not fit into their unit";
        if (static_cast<size_t>(packed - p.begin) < p.num_escapes) return "escapes do not fit into their unit";
        p.escapes = packed - p.num_escapes;
        p.words_end = p.escapes - ((p.escapes - p.begin) & 1);
        for (uint32_t row = 0; row < u.num_rows; ++row)
            place_row(view_, u, row, read_offset(a_, message_, u.first_row + row), s);
        return nullptr;
    }

    bool decode_words(const Piece* p, int num, Scratch* s) {
        Blocks blocks[max_units];
        uint8_t* symbols[max_units];
        uint32_t* states[max_units];
        const uint8_t *begin[max_units], *end[max_units];
        int coded = 0;
        for (int k = 0; k < num; ++k) {
            if (p[k].raw()) continue;
            blocks[coded] = blocks_of(a_, t_, s[k], p[k].unit);
            symbols[coded] = s[k].symbols, states[coded] = s[k].states;
            begin[coded] = p[k].begin, end[coded] = p[k].words_end;
            ++coded;
        }
        if (coded == 0) return true;
        ops_.decode(blocks, coded, symbols, states, begin, end);
        for (int k = 0; k < coded; ++k)
            if (end[k] != begin[k]) return false;
        return true;
    }

    // Values of a unit whose symbols are there, row by row so that a row's exponents stay near.
    const char* finish(const Piece& p, Scratch& s) {
        const Unit& u = p.unit;
        if (p.raw()) {
            for (uint32_t row = 0; row < u.num_rows; ++row)
                join(u, row, p.begin + u.seeds + size_t{row} * u.num_channels, s);
            return nullptr;
        }
        if (const char* why = check_states(u, s)) return why;
        const uint8_t *escapes = p.escapes, *const end = p.escapes + p.num_escapes;
        for (uint32_t row = 0; row < u.num_rows; ++row) {
            escapes = ops_.to_exponents(row_of(view_, s, u, row), s.symbols + size_t{row} * u.groups() * group_values,
                                        s.exponents, escapes, end);
            if (!escapes) return "too few escapes";
            join(u, row, s.exponents, s);
        }
        return escapes == end ? nullptr : "escapes left over";
    }

    // What the states were seeded with: 1 in bit 16 and two bytes of the seed plane.
    const char* check_states(const Unit& u, Scratch& s) {
        for (int lane = 0; lane < a_.lanes; ++lane) {
            if (s.states[lane] >> 16 != 1) return "a state does not end where it started";
            s.seeds[2 * lane] = static_cast<uint8_t>(s.states[lane]);
            s.seeds[2 * lane + 1] = static_cast<uint8_t>(s.states[lane] >> 8);
        }
        for (int i = static_cast<int>(u.seeds); i < 2 * a_.lanes; ++i)
            if (s.seeds[i] != 0) return "seed bytes of a short unit are not 0";
        return nullptr;
    }

    // `exponents` are the row's own.
    void join(const Unit& u, uint32_t row, const uint8_t* exponents, const Scratch& s) {
        const uint64_t r = u.first_row + row;
        const size_t element = element_size(a_.dtype);
        uint8_t* const values = values_ + r * stride_ + u.first_channel * element;
        const uint32_t start = row * u.num_channels;
        in_pieces(u, row, [&](uint32_t i, uint32_t n, bool in_states) {
            ops_.join(a_.dtype, exponents + (i - start),
                      in_states ? s.seeds + i : message_ + u.seed_plane + (i - u.seeds), n,
                      values + (i - start) * element);
        });
        if (a_.dtype == code_fp16) {
            add_row_bits(r, u, values);
        } else if (a_.dtype == code_fp32) {
            const uint64_t at = r * a_.channels + u.first_channel;
            ops_.add_low(a_.has_plane1 ? message_ + a_.plane1 + at : nullptr,
                         a_.has_plane0 ? message_ + a_.plane0 + at : nullptr, u.num_channels, values);
        }
    }

    void add_row_bits(uint64_t r, const Unit& u, uint8_t* values) {
        uint8_t pieces[3 * unit_coded / 8];
        const uint64_t whole = Layout::bitmap_bytes(a_.channels), piece = Layout::bitmap_bytes(u.num_channels);
        const uint8_t* const from = message_ + a_.bitmaps + r * 3 * whole + u.first_channel / 8;
        if (whole == piece) return ops_.add_bits(from, u.num_channels, values);
        for (int k = 0; k < 3; ++k) std::memcpy(pieces + k * piece, from + k * whole, piece);
        ops_.add_bits(pieces, u.num_channels, values);
    }

    const Ops& ops_;
    const uint8_t* message_;
    size_t size_;
    const Table& t_;
    TableView view_;
    const Layout& a_;
    uint8_t* values_;
    size_t stride_;
};

const char* decode_raw(const Shape& shape, const uint8_t* message, size_t size, uint8_t* values, size_t stride,
                       bool verify) {
    if (size != raw_header_bytes + shape.num_bytes()) return "raw message of another size";
    if (message[1] != shape.dtype) return "message of another dtype";
    if (message[2] != 0 || message[3] != 0) return "reserved bytes are not 0";
    if (verify && !check(message, size, nullptr)) return "wrong checksum";
    const uint8_t* from = message + raw_header_bytes;
    if (stride == shape.row_bytes()) {
        if (shape.num_bytes() != 0) std::memcpy(values, from, shape.num_bytes());
    } else {
        for (uint64_t r = 0; r < shape.rows; ++r)
            std::memcpy(values + r * stride, from + r * shape.row_bytes(), shape.row_bytes());
    }
    return nullptr;
}

}  // namespace

Need needed_table(const uint8_t* message, size_t size, uint8_t key[4]) {
    if (size < raw_header_bytes || message[0] >> 4 != version || (message[0] & 15) > 1) return Need::corrupt;
    if ((message[0] & 15) == 0) return Need::none;
    if (size < coded_header_bytes) return Need::corrupt;
    std::memcpy(key, message + 8, 4);
    return Need::table;
}

const char* read_head(const Shape& shape, const uint8_t* message, size_t size, const Table& table, Layout& a) {
    if (size < coded_header_bytes || message[0] != (version << 4 | 1)) return "not a coded message of version 1";
    if (std::memcmp(message + 8, table.digest, 4) != 0) return "message of another table";
    if (table.dtype != shape.dtype || table.channels != shape.channels) return "table of another dtype or width";
    const uint64_t n = shape.rows * shape.channels;
    const int unit_log2 = message[2] & 15, missing = message[2] >> 4;
    if (n < min_coded_values) return "coded message of too few values";
    if (message[1] != (shape.dtype | lanes_code(lanes_for(n)) << 2)) return "message of another dtype or size";
    if (unit_log2 < 8 || unit_log2 > max_unit_log2 || missing > 3 || (missing && shape.dtype != code_fp32))
        return "unknown flags";
    a = Layout::make(shape.rows, shape.channels, shape.dtype, table.row_bits, lanes_for(n), unit_log2, !(missing & 1),
                     !(missing & 2));
    if (a.units < words_before) return "coded message of too few values";
    if (a.num_units > 1 && message[3] != 0) return "reserved byte is not 0";
    return nullptr;
}

void seal(uint8_t* message, size_t size, const Table* table) {
    store(message + 4, message_checksum(message, size, table));
}

bool check(const uint8_t* message, size_t size, const Table* table) {
    return size >= raw_header_bytes && load<uint32_t>(message + 4) == message_checksum(message, size, table);
}

const char* decode(const Shape& shape, const uint8_t* message, size_t size, const Table* table, uint8_t* values,
                   size_t stride, bool verify) {
    uint8_t key[4];
    const Need need = needed_table(message, size, key);
    if (need == Need::corrupt) return "not a message of version 1";
    if (need == Need::none) return decode_raw(shape, message, size, values, stride, verify);
    if (!table) return "message of another table";
    Layout a;
    if (const char* why = read_head(shape, message, size, *table, a)) return why;
    if (verify && !check(message, size, table)) return "wrong checksum";
    return Decoder(message, size, *table, a, values, stride).run();
}

}  // namespace bloombee::rans
