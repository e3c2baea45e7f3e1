#include <immintrin.h>

#include "plan/rows.h"

namespace bloombee::plan {
namespace {

constexpr int lanes = 8;

inline __mmask8 lanes_at(int v, int n) { return n - v >= lanes ? __mmask8(0xff) : __mmask8((1u << (n - v)) - 1); }

void spans(double* out, const double* span, const double* rest, int count, int n) {
    for (int v = 0; v < n; v += lanes) {
        const __mmask8 some = lanes_at(v, n);
        __m512d least = _mm512_maskz_loadu_pd(some, out + v);
        for (int k = 0; k < count; ++k) {
            const long at = long(k) * n + v;
            least = _mm512_min_pd(
                least, _mm512_add_pd(_mm512_maskz_loadu_pd(some, span + at), _mm512_maskz_loadu_pd(some, rest + at)));
        }
        _mm512_mask_storeu_pd(out + v, some, least);
    }
}

double worst_of(const double* out, const double* least, const double* most, int n) {
    const __m512d none = _mm512_set1_pd(-__builtin_inf());
    __m512d worst = none;
    for (int u = 0; u < n; u += lanes) {
        const __mmask8 some = lanes_at(u, n);
        const __m512d own = _mm512_sub_pd(
            _mm512_min_pd(_mm512_mask_loadu_pd(none, some, out + u), _mm512_mask_loadu_pd(none, some, most + u)),
            _mm512_maskz_loadu_pd(some, least + u));
        worst = _mm512_max_pd(worst, own);
    }
    return _mm512_reduce_max_pd(worst);
}

void take(double* out, const double* hop, const double* rest, const int* batch, int count, int n) {
    for (int u = 0; u < n; u += lanes) {
        const __mmask8 some = lanes_at(u, n);
        __m512d best = _mm512_maskz_loadu_pd(some, out + u);
        for (int a = 0; a < count; ++a) {
            const __m512d row = _mm512_maskz_loadu_pd(some, hop + long(batch[a]) * n + u);
            best = _mm512_min_pd(best, _mm512_add_pd(row, _mm512_set1_pd(rest[batch[a]])));
        }
        _mm512_mask_storeu_pd(out + u, some, best);
    }
}

}  // namespace

const RowKernels row_kernels_avx512{spans, hops_of<take, worst_of>};

}  // namespace bloombee::plan
