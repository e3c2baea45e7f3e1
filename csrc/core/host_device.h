// A function that CUDA kernels and the host share.
#pragma once

#if defined(__CUDACC__)
#define BLOOMBEE_HD __host__ __device__ __forceinline__
#else
#define BLOOMBEE_HD inline
#endif
