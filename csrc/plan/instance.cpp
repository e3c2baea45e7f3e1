#include "plan/instance.h"

#include <cstddef>

namespace bloombee::plan {
namespace {

// Rows of `width` items each.
template <class T>
std::vector<T> rows(const std::vector<T>& table, const std::vector<int>& chosen, std::size_t width = 1) {
    std::vector<T> out;
    out.reserve(chosen.size() * width);
    for (const int w : chosen) out.insert(out.end(), table.begin() + long(w * width), table.begin() + long((w + 1) * width));
    return out;
}

std::vector<double> square(const std::vector<double>& table, const std::vector<int>& chosen, std::size_t width) {
    std::vector<double> out;
    out.reserve(chosen.size() * chosen.size());
    for (const int u : chosen)
        for (const int v : chosen) out.push_back(table[u * width + v]);
    return out;
}

}  // namespace

Instance Instance::only(const std::vector<int>& chosen) const {
    Instance part;
    std::vector<int> with_head = chosen;
    with_head.push_back(workers);
    static_cast<Common&>(part) = *this;
    part.workers = int(chosen.size());
    for (const Size& size : sizes)
        part.sizes.push_back({rows(size.stage, chosen), rows(size.layer, chosen, kinds), rows(size.output, chosen), size.ids,
                              size.raw, size.verdict});
    part.limit = rows(limit, chosen);
    part.stream = rows(stream, chosen);
    part.encode = rows(encode, chosen);
    part.decode = rows(decode, chosen);
    part.bandwidth = square(bandwidth, with_head, workers + 1);
    part.latency = square(latency, with_head, workers + 1);
    if (!rank.empty()) part.rank = rows(rank, chosen);
    if (!up.empty()) {
        part.up = rows(up, with_head);
        part.down = rows(down, with_head);
    }
    return part;
}

}  // namespace bloombee::plan
