#include "convolution.h"

// One warp a tap of an output pixel, its lanes over channels.
template <typename T>
KERNEL gather(int64_t items, Convolution d, const T* images, const T* offset, const T* mask, T* columns) {
  FOR_WARPS(i, items) {
    const int64_t row = i / d.taps(), tap = i % d.taps();
    const T* image = images + d.image(row) * d.channels;
    for (int64_t group = 0; group < d.deform_groups; ++group) {
      const int64_t place = d.mask_place(row, tap, group);
      const Corners<T> corners = d.corners(row, tap, offset + d.offset_place(place));
      const T scale = mask ? mask[place] : (T)1;
      for (int64_t c = d.channel(group) + lane(); c < d.channel(group + 1); c += LANES) {
        T sampled = 0;
        for (int k = 0; k < 4; ++k)
          if (corners.pixel[k] >= 0) sampled += corners.weight[k] * image[corners.pixel[k] * d.channels + c];
        columns[d.column_place(row, tap, c)] = scale * sampled;
      }
    }
  }
}

// As above. Taps meet in grad_images by atomic additions, in no fixed order.
template <typename T>
KERNEL backward(int64_t items, Convolution d, const T* images, const T* offset, const T* mask, const T* grad_columns,
                T* grad_images, T* grad_offset, T* grad_mask) {
  FOR_WARPS(i, items) {
    const int64_t row = i / d.taps(), tap = i % d.taps(), image = d.image(row) * d.channels;
    for (int64_t group = 0; group < d.deform_groups; ++group) {
      const int64_t place = d.mask_place(row, tap, group), offset_place = d.offset_place(place);
      const Corners<T> corners = d.corners(row, tap, offset + offset_place);
      const T scale = mask ? mask[place] : (T)1;
      T along = 0, down = 0, right = 0;
      for (int64_t c = d.channel(group) + lane(); c < d.channel(group + 1); c += LANES) {
        const T grad = grad_columns[d.column_place(row, tap, c)];
        for (int k = 0; k < 4; ++k) {
          if (corners.pixel[k] < 0) continue;
          const int64_t pixel = image + corners.pixel[k] * d.channels + c;
          const T product = grad * images[pixel];
          along += corners.weight[k] * product;
          down += corners.dy[k] * product;
          right += corners.dx[k] * product;
          atomic_add(grad_images + pixel, scale * corners.weight[k] * grad);
        }
      }
      along = warp_sum(along), down = warp_sum(down), right = warp_sum(right);
      if (lane() == 0) {
        grad_offset[offset_place] = scale * down;
        grad_offset[offset_place + d.size()] = scale * right;
        if (mask) grad_mask[place] = along;
      }
    }
  }
}

EXPORT int convolution_columns(CONVOLUTION_ARGUMENTS, const void* images, const void* offset, const void* mask,
                               void* columns, int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t items = rows * kernel_height * kernel_width;
  if (dtype)
    LAUNCH_WARPS(gather<double>, items, stream, CONVOLUTION, (const double*)images, (const double*)offset,
                 (const double*)mask, (double*)columns);
  else
    LAUNCH_WARPS(gather<float>, items, stream, CONVOLUTION, (const float*)images, (const float*)offset,
                 (const float*)mask, (float*)columns);
  return finish();
}

EXPORT int convolution_gradient(CONVOLUTION_ARGUMENTS, const void* images, const void* offset, const void* mask,
                                const void* grad_columns, void* grad_images, void* grad_offset, void* grad_mask,
                                int device, void* stream) {
  if (int error = begin(device)) return error;
  const int64_t items = rows * kernel_height * kernel_width;
  if (dtype)
    LAUNCH_WARPS(backward<double>, items, stream, CONVOLUTION, (const double*)images, (const double*)offset,
                 (const double*)mask, (const double*)grad_columns, (double*)grad_images, (double*)grad_offset,
                 (double*)grad_mask);
  else
    LAUNCH_WARPS(backward<float>, items, stream, CONVOLUTION, (const float*)images, (const float*)offset,
                 (const float*)mask, (const float*)grad_columns, (float*)grad_images, (float*)grad_offset,
                 (float*)grad_mask);
  return finish();
}
