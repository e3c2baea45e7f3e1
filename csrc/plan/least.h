// The least of sums, in a form that compilers put into vector registers.
#pragma once

#include <algorithm>

namespace bloombee::plan {

// min of a[i] + b[i] for i < count, and of `least`.
inline double least_sum(const double* a, const double* b, int count, double least) {
    double lane[4] = {least, least, least, least};
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; ++j) {
            const double sum = a[i + j] + b[i + j];
            lane[j] = sum < lane[j] ? sum : lane[j];
        }
    for (; i < count; ++i) lane[0] = std::min(lane[0], a[i] + b[i]);
    return std::min(std::min(lane[0], lane[1]), std::min(lane[2], lane[3]));
}

}  // namespace bloombee::plan
