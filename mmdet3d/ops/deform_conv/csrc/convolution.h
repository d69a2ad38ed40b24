// Sizes of a deformable convolution, and where its taps read.
// Row-major tensors: images (B, H, W, C), offset (B, D, K, 2, h', w') as y, x, mask (B, D, K, h', w') or null.
// Work is cut into chunks of output pixels, counted through the batch; the columns of a chunk are (G, rows, K, C / G).
#pragma once
#include "bilinear.h"

struct Convolution {
  int64_t channels, height, width, kernel_height, kernel_width, out_height, out_width;
  int64_t stride[2], padding[2], dilation[2];  // vertical, horizontal
  int64_t groups, deform_groups;
  int64_t first, rows;  // the chunk of output pixels

  HOST_DEVICE int64_t taps() const { return kernel_height * kernel_width; }
  HOST_DEVICE int64_t size() const { return out_height * out_width; }
  // First channel of a deformable group.
  HOST_DEVICE int64_t channel(int64_t deform_group) const { return channels / deform_groups * deform_group; }
  // First pixel, in the whole batch, of the image that a row of the chunk reads.
  HOST_DEVICE int64_t image(int64_t row) const { return (first + row) / size() * height * width; }
  // Place of a row's and tap's mask; `offset` has its y at offset_place, its x `size()` further.
  HOST_DEVICE int64_t mask_place(int64_t row, int64_t tap, int64_t deform_group) const {
    const int64_t pixel = first + row;
    return ((pixel / size() * deform_groups + deform_group) * taps() + tap) * size() + pixel % size();
  }
  HOST_DEVICE int64_t offset_place(int64_t mask_place) const {
    return mask_place / size() * 2 * size() + mask_place % size();
  }
  HOST_DEVICE int64_t column_place(int64_t row, int64_t tap, int64_t channel) const {
    // Short division is cheaper.
    const uint32_t width = (uint32_t)(channels / groups), group = (uint32_t)channel / width;
    return ((group * rows + row) * taps() + tap) * width + channel - (int64_t)group * width;
  }
  // Where a tap reads; pixel indices count from the first pixel of its image.
  template <typename T>
  HOST_DEVICE Corners<T> corners(int64_t row, int64_t tap, const T* offset_y) const {
    const int64_t pixel = (first + row) % size();
    const int64_t y = pixel / out_width * stride[0] - padding[0] + tap / kernel_width * dilation[0];
    const int64_t x = pixel % out_width * stride[1] - padding[1] + tap % kernel_width * dilation[1];
    return Corners<T>((T)y + offset_y[0], (T)x + offset_y[size()], height, width);
  }
};

// The arguments all entry points share, in the order in which Python passes them.
#define CONVOLUTION_ARGUMENTS                                                                                          \
  int64_t dtype, int64_t channels, int64_t height, int64_t width, int64_t kernel_height, int64_t kernel_width,        \
      int64_t out_height, int64_t out_width, int64_t stride_y, int64_t stride_x, int64_t padding_y, int64_t padding_x, \
      int64_t dilation_y, int64_t dilation_x, int64_t groups, int64_t deform_groups, int64_t first, int64_t rows
#define CONVOLUTION                                                                                           \
  Convolution{channels, height, width, kernel_height, kernel_width, out_height, out_width, {stride_y, stride_x}, \
              {padding_y, padding_x}, {dilation_y, dilation_x}, groups, deform_groups, first, rows}
