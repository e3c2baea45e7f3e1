#include "plan/rows.h"

#include "core/isa.h"

namespace bloombee::plan {
namespace {

// So many workers are taken between two looks at which others can still matter.
constexpr int at_once = 8;

void spans(double* out, const double* span, const double* rest, int count, int n) {
    for (int k = 0; k < count; ++k, span += n, rest += n)
        for (int v = 0; v < n; ++v) {
            const double sum = span[v] + rest[v];
            out[v] = sum < out[v] ? sum : out[v];
        }
}

// out[u] is at most worst + least[u], so a rest of `worst` or more is of no use to anyone.
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

const RowKernels row_kernels_scalar{spans, hops};

const RowKernels& row_kernels() {
#if BLOOMBEE_X86
    if (current_isa() == Isa::avx512) return row_kernels_avx512;
    if (current_isa() == Isa::avx2) return row_kernels_avx2;
#endif
    return row_kernels_scalar;
}

}  // namespace bloombee::plan
