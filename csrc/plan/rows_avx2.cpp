#include <immintrin.h>

#include "plan/rows.h"

namespace bloombee::plan {
namespace {

constexpr int lanes = 4;
constexpr int at_once = 8;

inline __m256i lanes_at(int v, int n) {
    const int left = n - v;
    return _mm256_setr_epi64x(left > 0 ? -1 : 0, left > 1 ? -1 : 0, left > 2 ? -1 : 0, left > 3 ? -1 : 0);
}

void spans(double* out, const double* span, const double* rest, int count, int n) {
    for (int v = 0; v < n; v += lanes) {
        const __m256i some = lanes_at(v, n);
        __m256d least = _mm256_maskload_pd(out + v, some);
        for (int k = 0; k < count; ++k) {
            const long at = long(k) * n + v;
            least = _mm256_min_pd(least, _mm256_add_pd(_mm256_maskload_pd(span + at, some), _mm256_maskload_pd(rest + at, some)));
        }
        _mm256_maskstore_pd(out + v, some, least);
    }
}

double worst_of(const double* out, const double* linked, int n) {
    __m256d worst = _mm256_setzero_pd();
    for (int u = 0; u < n; u += lanes) {
        const __m256i some = lanes_at(u, n);
        worst = _mm256_max_pd(worst, _mm256_min_pd(_mm256_maskload_pd(out + u, some), _mm256_maskload_pd(linked + u, some)));
    }
    const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(worst), _mm256_extractf128_pd(worst, 1));
    return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
}

void hops(double* out, const double* hop, const double* rest, const int* order, double shortest, const double* linked, int n) {
    for (int turn = 0; turn < n; turn += at_once) {
        if (!(rest[order[turn]] + shortest < worst_of(out, linked, n))) return;
        const int count = n - turn < at_once ? n - turn : at_once;
        for (int u = 0; u < n; u += lanes) {
            const __m256i some = lanes_at(u, n);
            __m256d least = _mm256_maskload_pd(out + u, some);
            for (int a = 0; a < count; ++a) {
                const int v = order[turn + a];
                const __m256d row = _mm256_maskload_pd(hop + long(v) * n + u, some);
                least = _mm256_min_pd(least, _mm256_add_pd(row, _mm256_set1_pd(rest[v])));
            }
            _mm256_maskstore_pd(out + u, some, least);
        }
    }
}

}  // namespace

const RowKernels row_kernels_avx2{spans, hops};

}  // namespace bloombee::plan
