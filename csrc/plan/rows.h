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

// Those for this process's instruction set (core/isa.h).
const RowKernels& row_kernels();

}  // namespace bloombee::plan
