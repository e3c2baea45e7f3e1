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

// out[u] is at most worst + least[u], so a rest of `worst` or more is of no use to anyone.
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

void hops(double* out, const double* hop, const double* rest, int* order, const double* least, const double* most, int n) {
    int batch[at_once], count = 0;
    double worst = __builtin_inf();
    for (int turn = 0; turn < n; ++turn) {
        const int v = order[turn];
        if (rest[v] < worst) batch[count++] = v;
        if (count < at_once && turn + 1 < n) continue;
        take(out, hop, rest, batch, count, n);
        worst = worst_of(out, least, most, n);
        count = 0;
    }
    int front = 0;
    for (int turn = 0; turn < n; ++turn) {
        const int v = order[turn];
        if (!(rest[v] < worst)) continue;
        order[turn] = order[front];
        order[front++] = v;
    }
}

}  // namespace

const RowKernels row_kernels_avx512{spans, hops};

}  // namespace bloombee::plan
