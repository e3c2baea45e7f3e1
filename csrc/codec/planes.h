// Byte planes of an array of elements: plane k holds byte k (k = 0 the least significant) of every element, so
// `planes` is [element_bytes, n] where `data` is [n, element_bytes]. This file is the logic of one element, shared by
// the CPU kernels (planes.cpp and its siblings) and the CUDA kernels (cuda/planes.cu).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace bloombee {

static_assert(std::endian::native == std::endian::little, "plane k is byte k in memory");

constexpr bool is_element_size(long element_bytes) {
    return element_bytes == 1 || element_bytes == 2 || element_bytes == 4;
}

// Byte `plane` of an element held in the low bytes of `word`.
static BLOOMBEE_HD uint32_t plane_byte(uint32_t word, int plane) { return (word >> (8 * plane)) & 0xffu; }

// An element's word with `byte` as its byte `plane`; that byte must be 0 so far.
static BLOOMBEE_HD uint32_t with_plane_byte(uint32_t word, int plane, uint32_t byte) {
    return word | (byte << (8 * plane));
}

// Element i of n, between `data` and `planes`.
template <int element_bytes>
static BLOOMBEE_HD void split_element(const uint8_t* data, uint8_t* planes, size_t n, size_t i) {
    for (int k = 0; k < element_bytes; ++k) planes[k * n + i] = data[i * element_bytes + k];
}

template <int element_bytes>
static BLOOMBEE_HD void join_element(const uint8_t* planes, uint8_t* data, size_t n, size_t i) {
    for (int k = 0; k < element_bytes; ++k) data[i * element_bytes + k] = planes[k * n + i];
}

}  // namespace bloombee
