// The CUDA kernels of cuda/fused.cu on the host, thread by thread, for tests. `dtype` is a code of numbers.h; false: there is none.
#pragma once

#include "fused/rows.h"

namespace bloombee::fused {

bool norm_by_lanes(const NormShape& shape, int dtype, const void* x, const void* weight, void* out);
bool gate_by_lanes(const GateShape& shape, int dtype, const void* gate, const void* up, void* out);
bool rotary_by_lanes(const RotaryShape& shape, int dtype, const void* x, const void* cosines, const void* sines, void* out);

}  // namespace bloombee::fused
