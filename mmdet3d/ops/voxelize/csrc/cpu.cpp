#include "voxel.h"

#include <algorithm>
#include <new>
#include <vector>

namespace {

constexpr int64_t BATCH = 256;  // points whose table entries are fetched ahead
constexpr int OUT_OF_MEMORY = 12;

// Open addressing with linear probing, at most half full: memory grows with the voxels that exist.
class Table {
 public:
  struct Entry {
    int64_t key;
    int32_t voxel, count;  // count 0: free
  };

  Table() : entries_(2 * BATCH, Entry{}), shift_(64 - 9) {}

  // Makes room for `extra` more voxels.
  void reserve(int64_t extra) {
    while (2 * (used_ + extra) > size()) {
      std::vector<Entry> old(entries_.size() * 2, Entry{});
      old.swap(entries_);
      --shift_;
      for (const Entry& entry : old)
        if (entry.count) find(entry.key) = entry;
    }
  }

  void prefetch(int64_t key) const { __builtin_prefetch(&entries_[home(key)], 1); }

  // The entry of `key`, opened if there is none.
  Entry& open(int64_t key) {
    Entry& entry = find(key);
    if (!entry.count) entry = {key, (int32_t)used_++, 0};
    return entry;
  }

  int64_t used() const { return used_; }
  int64_t size() const { return (int64_t)entries_.size(); }
  const Entry& operator[](int64_t i) const { return entries_[i]; }

 private:
  uint64_t home(int64_t key) const { return (uint64_t)key * 0x9E3779B97F4A7C15ull >> shift_; }

  Entry& find(int64_t key) {
    uint64_t at = home(key), mask = entries_.size() - 1;
    while (entries_[at].count && entries_[at].key != key) at = (at + 1) & mask;
    return entries_[at];
  }

  std::vector<Entry> entries_;
  int64_t used_ = 0;
  int shift_;
};

// keys (P) -> voxel of every point, in place, and its slot in that voxel.
void number(Table& table, int64_t points, int64_t* index, int32_t* slot) {
  for (int64_t begin = 0; begin < points; begin += BATCH) {
    int64_t end = std::min(begin + BATCH, points);
    table.reserve(end - begin);
    for (int64_t p = begin; p < end; ++p) table.prefetch(index[p]);
    for (int64_t p = begin; p < end; ++p) {
      if (index[p] < 0) {
        slot[p] = 0;
        continue;
      }
      Table::Entry& entry = table.open(index[p]);
      index[p] = entry.voxel;
      slot[p] = entry.count++;
    }
  }
}

}  // namespace

// coordinates (P, 3) and counts (P) are filled up to total[0], the number of voxels.
EXPORT int assign_points(GRID_ARGUMENTS, const void* data, int64_t* index, int32_t* slot, int32_t* coordinates,
                         int32_t* counts, int64_t* total, int threads, void*) try {
  const Grid grid = GRID;
  by_dtype(dtype, [&](auto* type) {
    auto* rows = (const std::remove_pointer_t<decltype(type)>*)data;
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < points; ++p) index[p] = voxel_key(grid, rows + p * columns);
    return 0;
  });
  Table table;
  number(table, points, index, slot);
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < table.size(); ++i) {
    const auto [key, voxel, count] = table[i];
    if (!count) continue;
    counts[voxel] = count;
    coordinates[voxel * 3] = (int32_t)(key / (ny * nz));
    coordinates[voxel * 3 + 1] = (int32_t)(key / nz % ny);
    coordinates[voxel * 3 + 2] = (int32_t)(key % nz);
  }
  *total = table.used();
  return 0;
} catch (const std::bad_alloc&) {
  return OUT_OF_MEMORY;
}

EXPORT int fill_voxels(int64_t dtype, int64_t points, int64_t columns, int64_t count, int64_t slots, const void* data,
                       const int64_t* index, const int32_t* slot, const int32_t* counts, void* voxels, int threads, void*) {
  return by_width(dtype, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for nowait
      for (int64_t m = 0; m < count; ++m) {
        S* rows = (S*)voxels + m * slots * columns;
        std::fill(rows + std::min<int64_t>(counts[m], slots) * columns, rows + slots * columns, (S)0);
      }
#pragma omp for
      for (int64_t p = 0; p < points; ++p)
        store_point((const S*)data + p * columns, columns, index[p], slot[p], count, slots, (S*)voxels);
    }
    return 0;
  });
}

struct Sum {
  template <typename T>
  static T join(T sum, T value) { return sum + value; }
};

struct Largest {  // NaN wins
  template <typename T>
  static T join(T largest, T value) { return value > largest || value != value ? value : largest; }
};

// features (P, F), index (P) -> out (size, F), the sum or the maximum of each group, and counts (size).
template <typename Rule, typename T>
static void reduce(int64_t rows, int64_t columns, int64_t size, const T* features, const int64_t* index, T* out,
                   int64_t* counts, int threads) {
  // Every thread owns a range of groups and walks over all rows, so that the order of additions never changes.
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; ++t) {
    int64_t begin = size * t / threads, end = size * (t + 1) / threads;
    std::fill(out + begin * columns, out + end * columns, (T)0);
    std::fill(counts + begin, counts + end, (int64_t)0);
    for (int64_t p = 0; p < rows; ++p) {
      int64_t group = index[p];
      if (group < begin || group >= end) continue;
      const T* row = features + p * columns;
      T* result = out + group * columns;
      if (counts[group]++)
        for (int64_t c = 0; c < columns; ++c) result[c] = Rule::join(result[c], row[c]);
      else
        std::copy(row, row + columns, result);
    }
  }
}

EXPORT int scatter_rows(int64_t dtype, int64_t rows, int64_t columns, int64_t size, int64_t largest, const void* features,
                        const int64_t* index, void* out, int64_t* counts, int threads, void*) {
  auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    (largest ? reduce<Largest, T> : reduce<Sum, T>)(rows, columns, size, (const T*)features, index, (T*)out, counts, threads);
    return 0;
  };
  return dtype ? run((double*)nullptr) : run((float*)nullptr);
}

EXPORT int gather_rows(int64_t dtype, int64_t rows, int64_t columns, int64_t size, const void* table, const int64_t* index,
                       void* out, int threads, void*) {
  return by_width(dtype, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < rows; ++p)
      for (int64_t c = 0; c < columns; ++c)
        ((S*)out)[p * columns + c] = value_at((const S*)table, size, columns, index[p], c);
    return 0;
  });
}
