#include "codec/planes.h"

#include <cstring>

#include "codec/planes_cpu.h"
#include "core/isa.h"

namespace bloombee {
namespace {

using Kernel = size_t (*)(const uint8_t*, uint8_t*, size_t);

struct Kernels {
    Kernel split2, split4, join2, join4;
};

size_t nothing(const uint8_t*, uint8_t*, size_t) { return 0; }

Kernels kernels() {
#if BLOOMBEE_X86
    switch (current_isa()) {
        case Isa::avx512:
            return {planes_avx512::split2, planes_avx512::split4, planes_avx512::join2, planes_avx512::join4};
        case Isa::avx2: return {planes_avx2::split2, planes_avx2::split4, planes_avx2::join2, planes_avx2::join4};
        default: break;
    }
#endif
    return {nothing, nothing, nothing, nothing};
}

template <int element_bytes>
void split(const uint8_t* data, uint8_t* planes, size_t n, Kernel kernel) {
    for (size_t i = kernel(data, planes, n); i < n; ++i) split_element<element_bytes>(data, planes, n, i);
}

template <int element_bytes>
void join(const uint8_t* planes, uint8_t* data, size_t n, Kernel kernel) {
    for (size_t i = kernel(planes, data, n); i < n; ++i) join_element<element_bytes>(planes, data, n, i);
}

}  // namespace

void split_planes(const uint8_t* data, uint8_t* planes, size_t n, int element_bytes) {
    if (n == 0) return;
    if (element_bytes == 2) return split<2>(data, planes, n, kernels().split2);
    if (element_bytes == 4) return split<4>(data, planes, n, kernels().split4);
    std::memcpy(planes, data, n);
}

void join_planes(const uint8_t* planes, uint8_t* data, size_t n, int element_bytes) {
    if (n == 0) return;
    if (element_bytes == 2) return join<2>(planes, data, n, kernels().join2);
    if (element_bytes == 4) return join<4>(planes, data, n, kernels().join4);
    std::memcpy(data, planes, n);
}

}  // namespace bloombee
