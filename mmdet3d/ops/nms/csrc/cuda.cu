#include "conflict.h"

// One row of words per shape: bit b of word w is set if shape i suppresses shape first[i] + 64 w + b of its group.
template <typename Shapes>
KERNEL find_conflicts(int64_t cells, int64_t words, Shapes shapes, const int64_t* first, const int64_t* last,
                      uint64_t* conflicts) {
  FOR_ITEMS(cell, cells) {
    int64_t i = cell / words, begin = first[i] + cell % words * 64;
    int64_t end = last[i] < begin + 64 ? last[i] : begin + 64;
    uint64_t bits = 0;
    for (int64_t j = begin > i ? begin : i + 1; j < end; ++j)
      bits |= (uint64_t)shapes.conflict(i, j) << (j - begin);
    conflicts[cell] = bits;
  }
}

// One warp walks over a group, best score first, and sets `keep`, which is zero before. Lane k alone reads and writes the
// words k, k + LANES, ... of `removed`, so the lanes need no synchronisation. A limit < 0 is none.
KERNEL sweep_groups(int64_t count, int64_t words, int64_t limit, const int64_t* first, const int64_t* last,
                    const uint64_t* conflicts, uint64_t* removed, uint8_t* keep) {
  FOR_WARPS(start, count) {
    if (first[start] != start) continue;
    int64_t used = (last[start] - start + 63) / 64, left = limit;
    uint64_t* gone = removed + start;
    for (int64_t w = lane(); w < used; w += LANES) gone[w] = 0;
    for (int64_t w = 0; w < used && left != 0; ++w) {
      int64_t begin = start + w * 64, rows = last[start] - begin < 64 ? last[start] - begin : 64;
      const uint64_t* block = conflicts + begin * words;
      uint64_t out = warp_sum(w % LANES == lane() ? gone[w] : (uint64_t)0), kept = 0;
      for (int64_t b = 0; b < rows && left != 0; ++b) {
        uint64_t row = block[b * words + w];
        if (out >> b & 1) continue;
        out |= row;
        kept |= (uint64_t)1 << b;
        --left;
        if (lane() == 0) keep[begin + b] = 1;
      }
      int64_t mine = w + 1 + (lane() - (w + 1) % LANES + LANES) % LANES;  // the first of this lane's words after w
      for (int64_t b = 0; b < rows; ++b)
        if (kept >> b & 1)
          for (int64_t v = mine; v < used; v += LANES) gone[v] |= block[b * words + v];
    }
  }
}

KERNEL prepare(int64_t count, const double* boxes, Rectangle* shapes) {
  FOR_ITEMS(i, count) {
    const double* b = boxes + 5 * i;
    shapes[i] = make_rectangle(b[0], b[1], b[2], b[3], b[4]);
  }
}

EXPORT int keep_circles(int64_t count, int64_t words, int64_t limit, double squared_radius, const double* centers,
                        const int64_t* first, const int64_t* last, uint8_t* keep, void* conflicts, void* removed, int device,
                        void* stream) {
  if (int error = begin(device)) return error;
  Circles shapes{centers, squared_radius};
  LAUNCH(find_conflicts, count * words, stream, words, shapes, first, last, (uint64_t*)conflicts);
  LAUNCH_WARPS(sweep_groups, count, stream, words, limit, first, last, (const uint64_t*)conflicts, (uint64_t*)removed, keep);
  return finish();
}

EXPORT int keep_rectangles(int64_t count, int64_t words, int64_t limit, double threshold, const double* boxes,
                           const int64_t* first, const int64_t* last, uint8_t* keep, void* conflicts, void* removed,
                           void* shapes, int device, void* stream) {
  if (int error = begin(device)) return error;
  LAUNCH(prepare, count, stream, boxes, (Rectangle*)shapes);
  Rectangles rectangles{(const Rectangle*)shapes, threshold};
  LAUNCH(find_conflicts, count * words, stream, words, rectangles, first, last, (uint64_t*)conflicts);
  LAUNCH_WARPS(sweep_groups, count, stream, words, limit, first, last, (const uint64_t*)conflicts, (uint64_t*)removed, keep);
  return finish();
}
