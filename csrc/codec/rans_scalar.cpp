#include "codec/rans_loops.h"
#include "core/isa.h"

namespace bloombee::rans {
namespace {

uint8_t* to_symbols(const Row& row, const uint8_t* exponents, uint8_t* symbols, uint8_t* escapes) {
    return to_symbols_from(row, 0, exponents, symbols, escapes);
}

const uint8_t* to_exponents(const Row& row, const uint8_t* symbols, uint8_t* exponents, const uint8_t* escapes,
                            const uint8_t* escapes_end) {
    return to_exponents_from(row, 0, symbols, exponents, escapes, escapes_end);
}

uint8_t* encode_unit(const Blocks& blocks, const uint8_t* symbols, uint32_t* states, uint8_t* words) {
    const int lanes = blocks.lanes;
    for (size_t block = blocks.num_blocks; block-- > 0;) {
        const SymbolTable& t = blocks.tables[blocks.table[block]];
        for (int step = group_values / lanes; step-- > 0;) {
            const uint8_t* symbol = symbols + block * group_values + step * lanes;
            for (int lane = 0; lane < lanes; ++lane) {
                uint32_t& state = states[lane];
                const uint32_t entry = t.encode[symbol[lane]];
                if (encode_needs_word(state, entry)) {
                    store(words, static_cast<uint16_t>(state));
                    words += 2;
                    state >>= 16;
                }
                state = encode_step(state, entry, t.reciprocal[symbol[lane]]);
            }
        }
    }
    return words;
}

const uint8_t* decode_unit(const Blocks& blocks, uint8_t* symbols, uint32_t* states, const uint8_t* begin,
                           const uint8_t* end) {
    const int lanes = blocks.lanes;
    for (size_t block = 0; block < blocks.num_blocks; ++block) {
        const SymbolTable& t = blocks.tables[blocks.table[block]];
        for (int step = 0; step < group_values / lanes; ++step) {
            uint8_t* symbol = symbols + block * group_values + step * lanes;
            int needed = 0;
            for (int lane = 0; lane < lanes; ++lane) {
                symbol[lane] = t.slot[states[lane] & 0xff];
                states[lane] = decode_step(states[lane], t.range[symbol[lane]]);
                needed += states[lane] < state_low;
            }
            if (end - begin < 2 * needed) return nullptr;
            end -= 2 * needed;
            const uint8_t* word = end;
            for (int lane = 0; lane < lanes; ++lane) {
                if (states[lane] >= state_low) continue;
                states[lane] = states[lane] << 16 | load<uint16_t>(word);
                word += 2;
            }
        }
    }
    return end;
}

void encode(const Blocks* blocks, int num, const uint8_t* const* symbols, uint32_t* const* states, uint8_t** words) {
    for (int u = 0; u < num; ++u) words[u] = encode_unit(blocks[u], symbols[u], states[u], words[u]);
}

void decode(const Blocks* blocks, int num, uint8_t* const* symbols, uint32_t* const* states,
            const uint8_t* const* begin, const uint8_t** end) {
    for (int u = 0; u < num; ++u) end[u] = decode_unit(blocks[u], symbols[u], states[u], begin[u], end[u]);
}

}  // namespace

const Ops scalar_ops = {"scalar", split,      join,         split_bits, add_bits, split_low,
                        add_low,  to_symbols, to_exponents, encode,     decode,   1};

const Ops& current_ops() {
#if BLOOMBEE_X86
    static const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
    const Isa isa = current_isa();
    if (isa == Isa::avx512 && vbmi) return vbmi_ops;
    if (isa != Isa::scalar) return avx2_ops;
#endif
    return scalar_ops;
}

}  // namespace bloombee::rans
