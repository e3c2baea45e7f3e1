// The inner loops of the relaxation (relaxation.h), over rows with one item for each worker. All levels give the same numbers: a
// least of sums does not depend on the order in which it is taken.
#pragma once

namespace bloombee::plan {

struct RowKernels {
    // out[v] = min(out[v], min of span[k, v] + rest[k, v] for k < count); span and rest: [count, n].
    void (*spans)(double* out, const double* span, const double* rest, int count, int n);
    // out[u] = min(out[u], hop[v, u] + rest[v]) for all workers v. `order` has them all, those first that are likely to matter,
    // and is left in such an order for similar rests. least[u] is the least hop[., u], and most[u] is inf; of a u without links,
    // 0 and -inf.
    void (*hops)(double* out, const double* hop, const double* rest, int* order, const double* least, const double* most, int n);
};

extern const RowKernels row_kernels_scalar;
extern const RowKernels row_kernels_avx2;
extern const RowKernels row_kernels_avx512;

// The same for all levels: hops() out of a level's own inner loops.
//   Take: out[u] = min(out[u], hop[v, u] + rest[v]) for the `count` workers v of a batch.
//   Worst: out[u] is at most worst + least[u] for all u, so a rest of `worst` or more is of no use to anyone.
template <auto Take, auto Worst>
void hops_of(double* out, const double* hop, const double* rest, int* order, const double* least, const double* most, int n) {
    // So many workers are taken between two looks at which others can still matter.
    constexpr int at_once = 8;
    int batch[at_once], count = 0;
    double worst = __builtin_inf();
    for (int turn = 0; turn < n; ++turn) {
        const int v = order[turn];
        if (rest[v] < worst) batch[count++] = v;
        if (count < at_once && turn + 1 < n) continue;
        Take(out, hop, rest, batch, count, n);
        worst = Worst(out, least, most, n);
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

// Those for this process's instruction set (core/isa.h).
const RowKernels& row_kernels();

}  // namespace bloombee::plan
