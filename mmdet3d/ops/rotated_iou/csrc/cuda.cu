#include "iou.h"

template <typename T>
KERNEL prepare(int64_t count, bool space, const T* values, Box* boxes) {
  FOR_ITEMS(i, count) boxes[i] = make_box(values + i * (space ? 7 : 5), space);
}

// boxes: N first ones, then M second ones.
template <typename T>
KERNEL all_pairs(int64_t pairs, int64_t n, int64_t m, const Box* boxes, T* out) {
  FOR_ITEMS(i, pairs) out[i] = (T)iou(boxes[i / m], boxes[n + i % m]);
}

template <typename T>
KERNEL row_by_row(int64_t rows, bool space, const T* first, const T* second, T* out) {
  FOR_ITEMS(i, rows) {
    int64_t at = i * (space ? 7 : 5);
    out[i] = (T)iou(make_box(first + at, space), make_box(second + at, space));
  }
}

template <typename T>
static void launch_pairs(int64_t n, int64_t m, bool space, const T* first, const T* second, T* out, Box* scratch,
                         void* stream) {
  LAUNCH(prepare, n, stream, space, first, scratch);
  LAUNCH(prepare, m, stream, space, second, scratch + n);
  LAUNCH(all_pairs, n * m, stream, n, m, (const Box*)scratch, out);
}

EXPORT int iou_pairs(int64_t dtype, int64_t n, int64_t m, int64_t space, const void* first, const void* second, void* out,
                     void* scratch, int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    launch_pairs(n, m, space, (const double*)first, (const double*)second, (double*)out, (Box*)scratch, stream);
  else
    launch_pairs(n, m, space, (const float*)first, (const float*)second, (float*)out, (Box*)scratch, stream);
  return finish();
}

EXPORT int iou_rows(int64_t dtype, int64_t n, int64_t space, const void* first, const void* second, void* out, int device,
                    void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(row_by_row, n, stream, space != 0, (const double*)first, (const double*)second, (double*)out);
  else
    LAUNCH(row_by_row, n, stream, space != 0, (const float*)first, (const float*)second, (float*)out);
  return finish();
}
