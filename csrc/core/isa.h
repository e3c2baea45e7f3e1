// Which instruction set the kernels of this process use, chosen once at run time.
//
// A kernel lives in a file of its own per level (name.cpp scalar, name_avx2.cpp, name_avx512.cpp); the scalar file
// picks among them with `current_isa()`. Every level gives the same bytes.
//
// Rule for the _sse42/_avx2/_avx512 files: no inline functions or templates with external linkage (so no standard
// containers or algorithms, and only `static` helpers from our headers). The linker keeps one copy of such a
// function for the whole program and may keep the one that an older CPU cannot run.
#pragma once

namespace bloombee {

enum class Isa : int {
    scalar = 0,
    avx2 = 1,    // with SSE4.2, PCLMUL, BMI1/2, LZCNT and POPCNT
    avx512 = 2,  // with F, BW, DQ and VL
};

constexpr int num_isas = 3;

// Best level that this CPU and operating system run.
Isa best_isa();

// Level in use; the best one unless set_isa said otherwise.
Isa current_isa();

// Use `isa` from now on in every thread (for tests and benchmarks); returns the level before.
// The caller makes sure that isa <= best_isa().
Isa set_isa(Isa isa);

const char* isa_name(Isa isa);

}  // namespace bloombee
