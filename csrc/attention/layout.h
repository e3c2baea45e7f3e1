// Attention over pages: what a kernel is told, and how a row's keys are cut. engine/paged.py fills what is here.
//
// A pair is a new row and one query head. Rows of one sequence with the query heads of one KV head are a tile, and 16 of its
// pairs a band: the rows of a tensor core's product. Keys are cut into strips and splits, both counted from position 0. Each
// strip is weighed by itself, the strips of a split are added up in order, then the splits. So the bits of a row's result depend
// on its own sequence and on nothing else: a pair's arithmetic is that of its own row of each product, whatever the other rows
// of the band are, and keys that a pair does not see have weight 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace bloombee::attention {

constexpr int lanes = 32;
constexpr int band_pairs = 16;
constexpr int strip_keys = 64;
constexpr int split_strips = 8;
constexpr int split_keys = strip_keys * split_strips;
constexpr int narrow_warps = split_strips;  // a narrow tile's split: a warp a strip
constexpr int wide_warps = 4;               // a wide tile: a warp for each 16 of its pairs
constexpr int most_dim = 256;

enum Dtype : int { bfloat16 = 0, float16 = 1, float32 = 2 };

// Rows of one sequence, with one split of their keys (narrow tiles) or all of them (wide ones).
struct alignas(16) Item {
    int32_t row;       // of the batch, the first
    int32_t rows;      // adjacent ones
    int32_t position;  // of the first row
    int32_t split;     // of the keys; of a wide tile 0
    int32_t pages_at;  // word of the tables where the sequence's pages begin; -1: padding, whose result is 0
    int32_t start;     // the first position that its first page holds
    int32_t tile;      // counts the narrow tiles
    int32_t unused;
};

// Start of the tables: for each group of layers where its narrow items are and how many, then its wide ones.
struct List {
    int32_t at, count;
};

struct Task {
    const uint8_t* query;
    int64_t query_head, query_row;  // bytes from one to the next
    const uint8_t* keys;            // [kv_heads, slots, key_dim]
    const uint8_t* values;          // [kv_heads, slots, value_dim]
    int64_t key_head, value_head;   // bytes from one head to the next
    uint8_t* out;                   // [rows, heads, value_dim]
    const uint8_t* sinks;           // [heads] or null
    const int32_t* tables;
    uint8_t* parts;     // [items, kv_heads, bands][1 + value_tiles][32] Four: stats and sums of splits
    uint32_t* arrived;  // [tiles, kv_heads, bands] splits that are done; 0 before and after a run
    float scale;        // of products, in powers of two; with a cap: into units of the cap
    float cap;          // in powers of two; 0: none
    int32_t dtype, group, window, page_size;
    int32_t heads, kv_heads, key_dim, value_dim;
    int32_t bands[2];  // of 16 pairs in the largest narrow and wide tile
    int32_t bounds[2];  // most narrow and wide items that the lists can have; what is launched follows from these

    BLOOMBEE_HD int grouped() const { return heads / kv_heads; }
};

// Storing of a step's own rows.
struct WriteTask {
    const uint8_t *keys, *values;
    int64_t key_head, key_row, value_head, value_row;  // bytes
    uint8_t *held_keys, *held_values;                  // [kv_heads, slots, bytes]
    const int32_t* slots;                              // [rows]; -1: store nothing
    int64_t num_slots;
    int32_t rows, kv_heads, key_bytes, value_bytes;  // bytes: of one head's row
};

// Four values of a lane in the result of a product: (row r, columns 2c and 2c + 1), (row r + 8, the same), for lane 4r + c.
struct alignas(16) Four {
    float x[4];
};
struct alignas(16) Words {
    uint32_t w[4];
};

}  // namespace bloombee::attention
