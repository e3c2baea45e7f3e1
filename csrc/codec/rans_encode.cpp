#include "codec/rans_message.h"

namespace bloombee::rans {
namespace {

class Encoder {
  public:
    Encoder(const uint8_t* values, size_t stride, const Table& table, const Layout& layout, uint8_t* out)
        : ops_(current_ops()),
          values_(values),
          stride_(stride),
          t_(table),
          view_(table.view()),
          a_(layout),
          out_(out) {}

    // Bytes written, 0 if they would be more than `limit`. `escapes` of a single unit.
    size_t run(size_t limit, uint8_t& escapes) {
        size_t at = a_.units;
        const bool single = a_.num_units == 1;
        const size_t trailer = single ? 0 : a_.num_units * directory_entry_bytes;
        if (at + trailer > limit) return 0;
        if (at > a_.row_offsets) out_[at - 1] = 0;  // the padding byte, if there is one
        Scratch* const s = scratch();
        std::unique_ptr<uint32_t[]> directory(single ? nullptr : new uint32_t[a_.num_units]);
        for (uint64_t index = 0; index < a_.num_units;) {
            Unit units[max_units];
            uint8_t* ends[max_units];
            const int num = batch_at(ops_, a_, index);
            for (int k = 0; k < num; ++k) units[k] = a_.unit(index + k);
            encode_words(units, num, s, ends);
            for (int k = 0; k < num; ++k, ++index) {
                uint32_t num_escapes = escapes_[k];
                const size_t size = append(units[k], s[k], ends[k], num_escapes, limit - trailer - at, out_ + at);
                if (size == 0 || (single && num_escapes > 255)) return 0;
                at += size;
                if (single)
                    escapes = static_cast<uint8_t>(num_escapes);
                else
                    directory[index] = static_cast<uint32_t>(size) | num_escapes << 18;
            }
        }
        if (!single) std::memcpy(out_ + at, directory.get(), trailer);
        return at + trailer;
    }

  private:
    void encode_words(const Unit* units, int num, Scratch* s, uint8_t** ends) {
        Blocks blocks[max_units];
        const uint8_t* symbols[max_units];
        uint32_t* states[max_units];
        for (int k = 0; k < num; ++k) {
            escapes_[k] = split(units[k], s[k]);
            blocks[k] = blocks_of(a_, t_, s[k], units[k]);
            symbols[k] = s[k].symbols, states[k] = s[k].states, ends[k] = s[k].words;
            for (int lane = 0; lane < a_.lanes; ++lane)
                s[k].states[lane] = 1u << 16 | s[k].seeds[2 * lane] | uint32_t{s[k].seeds[2 * lane + 1]} << 8;
        }
        ops_.encode(blocks, num, symbols, states, ends);
    }

    // Values -> planes and symbols, row by row so that a row's exponents stay near. Returns the number of escapes.
    uint32_t split(const Unit& u, Scratch& s) {
        std::memset(s.seeds, 0, sizeof s.seeds);
        uint8_t* escapes = s.escapes;
        for (uint32_t row = 0; row < u.num_rows; ++row) {
            const uint64_t r = u.first_row + row;
            const uint8_t* const values = values_of(u, row);
            uint64_t sum = split_row(u, row, s.exponents, s.seeds);
            split_rest(values, r, u);
            int offset = 0;
            if (a_.row_bits != 0) {
                if (a_.segments > 1) sum = row_sum(r);
                offset = row_offset(t_, sum);
                if (u.first_channel == 0) write_offset(a_, out_, r, offset);
            }
            place_row(view_, u, row, offset, s);
            escapes = ops_.to_symbols(row_of(view_, s, u, row), s.exponents,
                                      s.symbols + size_t{row} * u.groups() * group_values, escapes);
        }
        return static_cast<uint32_t>(escapes - s.escapes);
    }

    const uint8_t* values_of(const Unit& u, uint32_t row) const {
        return values_ + (u.first_row + row) * stride_ + u.first_channel * element_size(a_.dtype);
    }

    // One row's exponents and its part of the seed plane; returns the sum of the exponents.
    uint64_t split_row(const Unit& u, uint32_t row, uint8_t* exponents, uint8_t* seeds) {
        const uint32_t start = row * u.num_channels;
        uint64_t sum = 0;
        in_pieces(u, row, [&](uint32_t i, uint32_t n, bool in_states) {
            sum += ops_.split(a_.dtype, values_of(u, row) + (i - start) * element_size(a_.dtype), n,
                              exponents + (i - start), in_states ? seeds + i : out_ + u.seed_plane + (i - u.seeds));
        });
        return sum;
    }

    void split_rest(const uint8_t* values, uint64_t r, const Unit& u) {
        if (a_.dtype == code_fp16) {
            split_row_bits(values, r, u);
        } else if (a_.dtype == code_fp32) {
            const uint64_t at = r * a_.channels + u.first_channel;
            ops_.split_low(values, u.num_channels, a_.has_plane1 ? out_ + a_.plane1 + at : nullptr,
                           a_.has_plane0 ? out_ + a_.plane0 + at : nullptr);
        }
    }

    void split_row_bits(const uint8_t* values, uint64_t r, const Unit& u) {
        // The bitmaps of a whole row lie together, so a piece goes through a buffer.
        uint8_t pieces[3 * unit_coded / 8];
        const uint64_t whole = Layout::bitmap_bytes(a_.channels), piece = Layout::bitmap_bytes(u.num_channels);
        uint8_t* const to = out_ + a_.bitmaps + r * 3 * whole + u.first_channel / 8;
        if (whole == piece) return ops_.split_bits(values, u.num_channels, to);
        ops_.split_bits(values, u.num_channels, pieces);
        for (int k = 0; k < 3; ++k) std::memcpy(to + k * whole, pieces + k * piece, piece);
    }

    uint64_t row_sum(uint64_t r) {
        if (summed_row_ == r) return summed_;
        summed_row_ = r, summed_ = 0;
        uint8_t exponents[1024 + exponent_room], seeds[1024];
        const size_t element = element_size(a_.dtype);
        for (uint64_t i = 0; i < a_.channels; i += 1024)
            summed_ += ops_.split(a_.dtype, values_ + r * stride_ + i * element,
                                  std::min<uint64_t>(1024, a_.channels - i), exponents, seeds);
        return summed_;
    }

    // One unit: words, padding, escapes, states; or raw. Returns its size (even), 0 if there is no room.
    size_t append(const Unit& u, Scratch& s, const uint8_t* words_end, uint32_t& num_escapes, size_t room,
                  uint8_t* to) {
        uint8_t states[max_state_bytes];
        const size_t words = static_cast<size_t>(words_end - s.words), packed = pack_states(s.states, a_.lanes, states);
        const size_t tail = num_escapes + packed, size = words + tail + (tail & 1);
        const size_t plain = u.seeds + u.values(), raw_size = plain + (plain & 1);
        if (size >= raw_size || num_escapes >= raw_unit) return append_raw(u, s, num_escapes, raw_size, room, to);
        if (size > room) return 0;
        std::memcpy(to, s.words, words);
        to += words;
        if (tail & 1) *to++ = 0;
        std::memcpy(to, s.escapes, num_escapes);
        std::memcpy(to + num_escapes, states, packed);
        return size;
    }

    size_t append_raw(const Unit& u, Scratch& s, uint32_t& num_escapes, size_t size, size_t room, uint8_t* to) {
        if (size > room) return 0;
        num_escapes = raw_unit;
        to[size - 1] = 0;
        std::memcpy(to, s.seeds, u.seeds);
        for (uint32_t row = 0; row < u.num_rows; ++row) {
            split_row(u, row, s.exponents, s.seeds);
            std::memcpy(to + u.seeds + size_t{row} * u.num_channels, s.exponents, u.num_channels);
        }
        return size;
    }

    const Ops& ops_;
    const uint8_t* values_;
    size_t stride_;
    const Table& t_;
    TableView view_;
    const Layout& a_;
    uint8_t* out_;
    uint32_t escapes_[max_units] = {};
    uint64_t summed_row_ = ~uint64_t{0}, summed_ = 0;
};

// OR of the low 16 bits of fp32 values; stops when both bytes are known not to be 0.
uint32_t low_bits(const Shape& shape, const uint8_t* values, size_t stride) {
    uint32_t bits = 0;
    for (uint64_t r = 0; r < shape.rows; ++r) {
        const uint8_t* row = values + r * stride;
        for (uint64_t i = 0; i < shape.channels;) {
            for (const uint64_t stop = std::min<uint64_t>(shape.channels, i + 64); i < stop; ++i)
                bits |= load<uint32_t>(row + 4 * i);
            if ((bits & 0xff00) && (bits & 0xff)) return bits;
        }
    }
    return bits;
}

size_t encode_raw(const Shape& shape, const uint8_t* values, size_t stride, uint8_t* out) {
    out[0] = version << 4;
    out[1] = static_cast<uint8_t>(shape.dtype);
    out[2] = out[3] = 0;
    uint8_t* to = out + raw_header_bytes;
    if (stride == shape.row_bytes()) {
        if (shape.num_bytes() != 0) std::memcpy(to, values, shape.num_bytes());
    } else {
        for (uint64_t r = 0; r < shape.rows; ++r)
            std::memcpy(to + r * shape.row_bytes(), values + r * stride, shape.row_bytes());
    }
    const size_t size = raw_header_bytes + shape.num_bytes();
    seal(out, size, nullptr);
    return size;
}

}  // namespace

size_t encode(const Shape& shape, const uint8_t* values, size_t stride, const Table* table, int unit_log2,
              uint8_t* out) {
    const uint64_t n = shape.rows * shape.channels;
    if (!table || shape.dtype == code_other || n < min_coded_values) return encode_raw(shape, values, stride, out);
    const uint32_t low = shape.dtype == code_fp32 ? low_bits(shape, values, stride) : 0;
    const bool low1 = low & 0xff00, low0 = low & 0xff;
    const int lanes = lanes_for(n);
    const Layout a =
        Layout::make(shape.rows, shape.channels, shape.dtype, table->row_bits, lanes, unit_log2, low0, low1);
    if (a.units < words_before) return encode_raw(shape, values, stride, out);
    uint8_t escapes = 0;
    const size_t size = Encoder(values, stride, *table, a, out).run(bound(shape.num_bytes()), escapes);
    if (size == 0) return encode_raw(shape, values, stride, out);
    write_head(a, unit_log2, *table, escapes, out);
    seal(out, size, table);
    return size;
}

}  // namespace bloombee::rans
