#include "decorate.h"

template <typename T>
KERNEL forward(int64_t pillars, Decoration d, const T* points, const int64_t* counts, const int64_t* cells, T* out) {
  FOR_ITEMS(m, pillars)
    decorate(d, points + m * d.slots * d.inputs, counts[m], cells + m * 3, out + m * d.slots * d.outputs);
}

template <typename T>
KERNEL backward(int64_t pillars, Decoration d, const T* points, const int64_t* counts, const T* grad_out, T* grad) {
  FOR_ITEMS(m, pillars)
    decorate_backward(d, points + m * d.slots * d.inputs, counts[m], grad_out + m * d.slots * d.outputs,
                      grad + m * d.slots * d.inputs);
}

EXPORT int decorate_forward(DECORATION_ARGUMENTS, const void* points, const int64_t* counts, const int64_t* cells, void* out,
                            int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(forward<double>, pillars, stream, DECORATION, (const double*)points, counts, cells, (double*)out);
  else
    LAUNCH(forward<float>, pillars, stream, DECORATION, (const float*)points, counts, cells, (float*)out);
  return finish();
}

EXPORT int decorate_gradient(DECORATION_ARGUMENTS, const void* points, const int64_t* counts, const void* grad_out, void* grad,
                             int device, void* stream) {
  if (int error = begin(device)) return error;
  if (dtype)
    LAUNCH(backward<double>, pillars, stream, DECORATION, (const double*)points, counts, (const double*)grad_out,
           (double*)grad);
  else
    LAUNCH(backward<float>, pillars, stream, DECORATION, (const float*)points, counts, (const float*)grad_out, (float*)grad);
  return finish();
}
