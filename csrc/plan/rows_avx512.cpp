#include <immintrin.h>

#include "plan/rows.h"

namespace bloombee::plan {
namespace {

constexpr int lanes = 8;
constexpr int at_once = 8;

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

double worst_of(const double* out, const double* linked, int n) {
    __m512d worst = _mm512_setzero_pd();
    for (int u = 0; u < n; u += lanes) {
        const __mmask8 some = lanes_at(u, n);
        worst = _mm512_max_pd(
            worst, _mm512_min_pd(_mm512_maskz_loadu_pd(some, out + u), _mm512_maskz_loadu_pd(some, linked + u)));
    }
    return _mm512_reduce_max_pd(worst);
}

void hops(double* out, const double* hop, const double* rest, const int* order, double shortest, const double* linked, int n) {
    for (int turn = 0; turn < n; turn += at_once) {
        if (!(rest[order[turn]] + shortest < worst_of(out, linked, n))) return;
        const int count = n - turn < at_once ? n - turn : at_once;
        for (int u = 0; u < n; u += lanes) {
            const __mmask8 some = lanes_at(u, n);
            __m512d least = _mm512_maskz_loadu_pd(some, out + u);
            for (int a = 0; a < count; ++a) {
                const int v = order[turn + a];
                const __m512d row = _mm512_maskz_loadu_pd(some, hop + long(v) * n + u);
                least = _mm512_min_pd(least, _mm512_add_pd(row, _mm512_set1_pd(rest[v])));
            }
            _mm512_mask_storeu_pd(out + u, some, least);
        }
    }
}

}  // namespace

const RowKernels row_kernels_avx512{spans, hops};

}  // namespace bloombee::plan
