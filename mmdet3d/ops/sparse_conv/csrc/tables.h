// Neighbour tables on the CPU: sites become int64 keys in lexicographic order, keys are sorted by radix, and sorted
// lists are merged. Every step runs through memory in order, which a hash table does not.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

// Where a site or a candidate for one comes from.
struct Entry {
  uint64_t key;
  int64_t origin;
};

// Stable radix sort by key, over those bits only in which keys differ.
inline void sort_entries(std::vector<Entry>& entries) {
  constexpr int BITS = 11;
  auto by_key = [](const Entry& a, const Entry& b) { return a.key < b.key; };
  if (std::is_sorted(entries.begin(), entries.end(), by_key)) return;
  uint64_t differing = 0;
  for (const Entry& e : entries) differing |= e.key ^ entries[0].key;
  std::vector<Entry> other(entries.size());
  for (int shift = 0; shift < 64; shift += BITS) {
    if (!(differing >> shift)) break;
    uint64_t mask = (1 << BITS) - 1;
    if (!(differing >> shift & mask)) continue;
    std::vector<int64_t> start(mask + 2, 0);
    for (const Entry& e : entries) ++start[(e.key >> shift & mask) + 1];
    for (uint64_t digit = 0; digit < mask; ++digit) start[digit + 1] += start[digit];
    for (const Entry& e : entries) other[start[e.key >> shift & mask]++] = e;
    entries.swap(other);
  }
}

inline bool has_duplicates(const std::vector<Entry>& sorted) {
  auto same = [](const Entry& a, const Entry& b) { return a.key == b.key; };
  return std::adjacent_find(sorted.begin(), sorted.end(), same) != sorted.end();
}

struct Box {
  int64_t x, y, z;
  uint64_t key(int64_t sample, int64_t i, int64_t j, int64_t k) const { return ((sample * x + i) * y + j) * z + k; }
};

// sites (N, 4) inside a grid -> neighbors (kx ky kz, N): the row of the site under each kernel offset, -1 for none.
// Returns false if a site occurs twice.
inline bool submanifold(int64_t count, const int64_t* sites, Box grid, Box kernel, Box dilation, int32_t* neighbors,
                        int threads) {
  Box reach{kernel.x / 2 * dilation.x, kernel.y / 2 * dilation.y, kernel.z / 2 * dilation.z};
  // Padded, so that an offset is one addition and never wraps into the next row or sample.
  Box padded{grid.x + 2 * reach.x, grid.y + 2 * reach.y, grid.z + 2 * reach.z};
  std::vector<Entry> sorted(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* s = sites + 4 * i;
    sorted[i] = {padded.key(s[0], s[1] + reach.x, s[2] + reach.y, s[3] + reach.z), i};
  }
  sort_entries(sorted);
  if (has_duplicates(sorted)) return false;

  int64_t offsets = kernel.x * kernel.y * kernel.z, center = offsets / 2, columns = center / kernel.z + 1;
  std::fill(neighbors, neighbors + offsets * count, -1);
  for (int64_t i = 0; i < count; ++i) neighbors[center * count + i] = (int32_t)i;
  constexpr int64_t CHUNK = 4096;
  int64_t chunks = (count + CHUNK - 1) / CHUNK;
  // The kernel is symmetric: half of the offsets tell the other half. Those of one column (equal x, y) share a scan.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < columns * chunks; ++task) {
    int64_t column = task / chunks, begin = task % chunks * CHUNK, end = std::min(begin + CHUNK, count);
    int64_t dx = (column / kernel.y - kernel.x / 2) * dilation.x, dy = (column % kernel.y - kernel.y / 2) * dilation.y;
    int64_t first = column * kernel.z, last = std::min(first + kernel.z, center);
    int64_t low = (dx * padded.y + dy) * padded.z - reach.z;
    auto scan = std::lower_bound(sorted.begin(), sorted.end(), sorted[begin].key + low,
                                 [](const Entry& e, uint64_t key) { return e.key < key; });
    for (int64_t i = begin; i < end; ++i) {
      uint64_t target = sorted[i].key + low;
      while (scan->key < target) ++scan;  // ends at the site itself at the latest: offsets here are negative
      auto place = scan;
      for (int64_t k = first; k < last; ++k, target += dilation.z) {
        while (place->key < target) ++place;
        if (place->key != target) continue;
        neighbors[k * count + sorted[i].origin] = (int32_t)place->origin;
        neighbors[(offsets - 1 - k) * count + place->origin] = (int32_t)sorted[i].origin;
      }
    }
  }
  return true;
}

// Kernel indices along one axis under which an input coordinate reaches an output: input = output * stride - padding +
// index * dilation.
struct Axis {
  int64_t kernel, stride, padding, dilation, extent;
  template <typename Body>
  void reached(int64_t coordinate, Body body) const {
    for (int64_t k = 0; k < kernel; ++k) {
      int64_t shifted = coordinate + padding - k * dilation;
      if (shifted >= 0 && shifted % stride == 0 && shifted / stride < extent) body(k, shifted / stride);
    }
  }
};

// sites (N, 4) -> keys of the output sites in ascending order, and inverse (kx ky kz, N): the output row that an input
// reaches under each kernel offset, -1 for none. Returns how many output sites there are.
inline int64_t strided(int64_t count, const int64_t* sites, Axis x, Axis y, Axis z, int64_t* keys, int32_t* inverse) {
  std::vector<Entry> candidates;
  candidates.reserve(count * 4);
  Box grid{x.extent, y.extent, z.extent};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* s = sites + 4 * i;
    x.reached(s[1], [&](int64_t kx, int64_t ox) {
      y.reached(s[2], [&](int64_t ky, int64_t oy) {
        z.reached(s[3], [&](int64_t kz, int64_t oz) {
          candidates.push_back({grid.key(s[0], ox, oy, oz), ((kx * y.kernel + ky) * z.kernel + kz) * count + i});
        });
      });
    });
  }
  sort_entries(candidates);
  std::fill(inverse, inverse + x.kernel * y.kernel * z.kernel * count, -1);
  int64_t found = 0;
  for (const Entry& c : candidates) {
    if (!found || keys[found - 1] != (int64_t)c.key) keys[found++] = (int64_t)c.key;
    inverse[c.origin] = (int32_t)(found - 1);
  }
  return found;
}

// inverse (offsets, inputs) -> neighbors (offsets, outputs). Returns false if two inputs claim one place, which happens
// only if a site occurs twice.
inline bool invert(int64_t offsets, int64_t inputs, int64_t outputs, const int32_t* inverse, int32_t* neighbors,
                   int threads) {
  bool unique = true;
#pragma omp parallel for num_threads(threads) reduction(&& : unique)
  for (int64_t k = 0; k < offsets; ++k) {
    int32_t* row = neighbors + k * outputs;
    std::fill(row, row + outputs, -1);
    for (int64_t i = 0; i < inputs; ++i) {
      int32_t o = inverse[k * inputs + i];
      if (o < 0) continue;
      unique = unique && row[o] < 0;
      row[o] = (int32_t)i;
    }
  }
  return unique;
}
