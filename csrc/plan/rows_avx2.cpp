#include <immintrin.h>

#include "plan/rows.h"

namespace bloombee::plan {
namespace {

constexpr int lanes = 4;

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

double worst_of(const double* out, const double* least, const double* most, int n) {
    const __m256d none = _mm256_set1_pd(-__builtin_inf());
    __m256d worst = none;
    for (int u = 0; u < n; u += lanes) {
        const __m256i some = lanes_at(u, n);
        const __m256d own = _mm256_sub_pd(_mm256_min_pd(_mm256_maskload_pd(out + u, some), _mm256_maskload_pd(most + u, some)),
                                          _mm256_maskload_pd(least + u, some));
        worst = _mm256_max_pd(worst, _mm256_blendv_pd(none, own, _mm256_castsi256_pd(some)));
    }
    const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(worst), _mm256_extractf128_pd(worst, 1));
    return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
}

void take(double* out, const double* hop, const double* rest, const int* batch, int count, int n) {
    for (int u = 0; u < n; u += lanes) {
        const __m256i some = lanes_at(u, n);
        __m256d best = _mm256_maskload_pd(out + u, some);
        for (int a = 0; a < count; ++a) {
            const __m256d row = _mm256_maskload_pd(hop + long(batch[a]) * n + u, some);
            best = _mm256_min_pd(best, _mm256_add_pd(row, _mm256_set1_pd(rest[batch[a]])));
        }
        _mm256_maskstore_pd(out + u, some, best);
    }
}

}  // namespace

const RowKernels row_kernels_avx2{spans, hops_of<take, worst_of>};

}  // namespace bloombee::plan
