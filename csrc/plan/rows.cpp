#include "plan/rows.h"

#include "core/isa.h"

namespace bloombee::plan {
namespace {

void spans(double* out, const double* span, const double* rest, int count, int n) {
    for (int k = 0; k < count; ++k, span += n, rest += n)
        for (int v = 0; v < n; ++v) {
            const double sum = span[v] + rest[v];
            out[v] = sum < out[v] ? sum : out[v];
        }
}

double worst_of(const double* out, const double* least, const double* most, int n) {
    double worst = -__builtin_inf();
    for (int u = 0; u < n; ++u) {
        const double own = (out[u] < most[u] ? out[u] : most[u]) - least[u];
        worst = own > worst ? own : worst;
    }
    return worst;
}

void take(double* out, const double* hop, const double* rest, const int* batch, int count, int n) {
    for (int a = 0; a < count; ++a) {
        const double* row = hop + long(batch[a]) * n;
        for (int u = 0; u < n; ++u) {
            const double sum = row[u] + rest[batch[a]];
            out[u] = sum < out[u] ? sum : out[u];
        }
    }
}

}  // namespace

const RowKernels row_kernels_scalar{spans, hops_of<take, worst_of>};

const RowKernels& row_kernels() {
#if BLOOMBEE_X86
    if (current_isa() == Isa::avx512) return row_kernels_avx512;
    if (current_isa() == Isa::avx2) return row_kernels_avx2;
#endif
    return row_kernels_scalar;
}

}  // namespace bloombee::plan
