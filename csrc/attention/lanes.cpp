#include "attention/lanes.h"

#include <memory>
#include <vector>

#include "attention/dispatch.h"
#include "attention/tiles.h"

namespace bloombee::attention {
namespace {

template <class T>
using LaneWeights = HostWarp::Lanes<Weights<T>>;

// What a block of the narrow kernel does with one band of an item.
template <class T, int dim>
void run_narrow(const Task& task, const NarrowBand& narrow, NarrowMemory<T>& memory) {
    HostWarp warp;
    std::vector<LaneWeights<T>> weights(narrow_warps);
    for (int i = 0; i < narrow_warps; ++i) narrow_weigh<T, dim>(warp, i, task, narrow, memory, weights[i]);
    for (int group = 0; group < Cut<T, dim>::groups && has_group<T>(task, group); ++group) {
        for (int i = 0; i < narrow_warps; ++i) narrow_sum<T>(warp, i, task, narrow, group, memory, weights[i]);
        for (int j = 0; j < Width<T>::elements; ++j)
            for (int lane = 0; lane < lanes; ++lane)
                narrow_add<T, dim>(task, narrow, group, j, memory, narrow_stats(memory, split_strips, lane), lane);
    }
    if (narrow.num_splits == 1 || ++task.arrived[narrow.counter] < static_cast<uint32_t>(narrow.num_splits)) return;
    task.arrived[narrow.counter] = 0;
    for (int i = 0; narrow_finish<T, dim>(task, narrow, i);) ++i;
}

const Item& item_of(const Task& task, const List& list, int index) {
    return reinterpret_cast<const Item*>(task.tables + list.at)[index];
}

template <class T, int dim>
void run_narrow_items(const Task& task, const List& list) {
    const auto memory = std::make_unique<NarrowMemory<T>>();
    for (int index = 0; index < list.count; ++index)
        for (int head = 0; head < task.kv_heads; ++head) {
            const Item& item = item_of(task, list, index);
            NarrowBand narrow;
            if (item.pages_at < 0) store_zeros<T>(task, item, head, 0, 1);
            for (int number = 0; item.pages_at >= 0 && number < task.bands[0]; ++number)
                if (make_narrow(task, item, index, head, number, &narrow)) run_narrow<T, dim>(task, narrow, *memory);
        }
}

template <class T, int dim>
void run_wide_items(const Task& task, const List& list) {
    HostWarp warp;
    std::vector<Four> kept(Cut<T, dim>::tiles * lanes);
    int slots[strip_keys];
    for (int index = 0; index < list.count; ++index)
        for (int head = 0; head < task.kv_heads; ++head)
            for (int number = 0; number < task.bands[1]; ++number) {
                Band band;
                if (make_band(task, item_of(task, list, index), head, number, &band))
                    wide_band<T, dim>(warp, task, band, slots,
                                       [&](int lane, int i) -> Four& { return kept[i * lanes + lane]; });
            }
}

template <class T>
bool attend(const Task& task) {
    const List* const lists = reinterpret_cast<const List*>(task.tables) + 2 * task.group;
    return by_width(task, [&]<int dim>() {
        run_narrow_items<T, dim>(task, lists[0]);
        run_wide_items<T, dim>(task, lists[1]);
        return true;
    });
}

}  // namespace

bool attend_by_lanes(const Task& task) {
    if (!is_covered(task)) return false;
    return task.dtype == bfloat16 ? attend<Bf16>(task) : task.dtype == float16 ? attend<Fp16>(task) : attend<float>(task);
}

void write_by_lanes(const WriteTask& task) {
    const int64_t parts = int64_t{task.rows} * task.kv_heads * ((task.key_bytes + task.value_bytes) / 16);
    for (int64_t index = 0; index < parts; ++index) write_part(task, index);
}

}  // namespace bloombee::attention
