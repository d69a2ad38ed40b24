#include "conflict.h"

#include <algorithm>
#include <new>
#include <vector>

constexpr int OUT_OF_MEMORY = 12;
constexpr int64_t MANY = 4096;  // with fewer shapes, waiting for a second thread costs more than it saves

// Walks over the shapes [first, last) of a group, best score first: a kept one clears `keep` of all it conflicts with.
template <typename Shapes>
static void sweep(const Shapes& shapes, int64_t first, int64_t last, int64_t limit, uint8_t* keep) {
  for (int64_t i = first; i < last; ++i) {
    if (!keep[i]) continue;
    if (limit-- == 0) {
      std::fill(keep + i, keep + last, (uint8_t)0);
      return;
    }
    for (int64_t j = i + 1; j < last; ++j)
      if (keep[j] && shapes.conflict(i, j)) keep[j] = 0;
  }
}

// Shape i may suppress those after it in its group, which is [first[i], last[i]); a limit < 0 is none.
template <typename Shapes>
static void sweep_groups(const Shapes& shapes, int64_t count, int64_t limit, const int64_t* first, const int64_t* last,
                         uint8_t* keep, int threads) {
  std::vector<int64_t> leaders;
  for (int64_t i = 0; i < count; ++i) {
    keep[i] = i < last[i];
    if (first[i] == i) leaders.push_back(i);
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (leaders.size() > 1 && count > MANY)
  for (size_t g = 0; g < leaders.size(); ++g) sweep(shapes, leaders[g], last[leaders[g]], limit, keep);
}

EXPORT int keep_circles(int64_t count, int64_t limit, double squared_radius, const double* centers, const int64_t* first,
                        const int64_t* last, uint8_t* keep, int threads, void*) try {
  sweep_groups(Circles{centers, squared_radius}, count, limit, first, last, keep, threads);
  return 0;
} catch (const std::bad_alloc&) {
  return OUT_OF_MEMORY;
}

EXPORT int keep_rectangles(int64_t count, int64_t limit, double threshold, const double* boxes, const int64_t* first,
                           const int64_t* last, uint8_t* keep, int threads, void*) try {
  std::vector<Rectangle> shapes(count);
  for (int64_t i = 0; i < count; ++i) {
    const double* b = boxes + 5 * i;
    shapes[i] = make_rectangle(b[0], b[1], b[2], b[3], b[4]);
  }
  sweep_groups(Rectangles{shapes.data(), threshold}, count, limit, first, last, keep, threads);
  return 0;
} catch (const std::bad_alloc&) {
  return OUT_OF_MEMORY;
}
