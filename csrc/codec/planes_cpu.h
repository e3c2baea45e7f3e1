// Byte planes on the CPU. Any alignment, any n; source and target must not overlap.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bloombee {

// data [n, element_bytes] -> planes [element_bytes, n]; element_bytes is 1, 2 or 4. One read and one write of n elements.
void split_planes(const uint8_t* data, uint8_t* planes, size_t n, int element_bytes);

// planes [element_bytes, n] -> data [n, element_bytes].
void join_planes(const uint8_t* planes, uint8_t* data, size_t n, int element_bytes);

// The kernels per level. Each does the first n' <= n elements that fill whole vectors and returns n'; `n` is also the
// distance between planes.
namespace planes_avx2 {
size_t split2(const uint8_t* data, uint8_t* planes, size_t n);
size_t split4(const uint8_t* data, uint8_t* planes, size_t n);
size_t join2(const uint8_t* planes, uint8_t* data, size_t n);
size_t join4(const uint8_t* planes, uint8_t* data, size_t n);
}  // namespace planes_avx2
namespace planes_avx512 {
size_t split2(const uint8_t* data, uint8_t* planes, size_t n);
size_t split4(const uint8_t* data, uint8_t* planes, size_t n);
size_t join2(const uint8_t* planes, uint8_t* data, size_t n);
size_t join4(const uint8_t* planes, uint8_t* data, size_t n);
}  // namespace planes_avx512

}  // namespace bloombee
