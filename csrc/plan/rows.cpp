#include "plan/rows.h"

#include "core/isa.h"

namespace bloombee::plan {
namespace {

// So many workers are taken between two looks whether others can still be less.
constexpr int at_once = 8;

void spans(double* out, const double* span, const double* rest, int count, int n) {
    for (int k = 0; k < count; ++k, span += n, rest += n)
        for (int v = 0; v < n; ++v) {
            const double sum = span[v] + rest[v];
            out[v] = sum < out[v] ? sum : out[v];
        }
}

double worst_of(const double* out, const double* linked, int n) {
    double worst = 0;
    for (int u = 0; u < n; ++u) {
        const double own = out[u] < linked[u] ? out[u] : linked[u];
        worst = own > worst ? own : worst;
    }
    return worst;
}

void hops(double* out, const double* hop, const double* rest, const int* order, double shortest, const double* linked, int n) {
    for (int turn = 0; turn < n; ++turn) {
        const double least = rest[order[turn]];
        if (turn % at_once == 0 && !(least + shortest < worst_of(out, linked, n))) return;
        const double* row = hop + long(order[turn]) * n;
        for (int u = 0; u < n; ++u) {
            const double sum = row[u] + least;
            out[u] = sum < out[u] ? sum : out[u];
        }
    }
}

}  // namespace

const RowKernels row_kernels_scalar{spans, hops};

const RowKernels& row_kernels() {
#if BLOOMBEE_X86
    if (current_isa() == Isa::avx512) return row_kernels_avx512;
    if (current_isa() == Isa::avx2) return row_kernels_avx2;
#endif
    return row_kernels_scalar;
}

}  // namespace bloombee::plan
