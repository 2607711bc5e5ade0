// Resizing images, channels last: nearest neighbour and bilinear, and their adjoints, each a single pass.
#include "vector.cuh"

namespace refnet {

// Where a row (or a column) of the result lies in the source, in whole numbers, so that nothing is rounded:
//
//     at(p) = (step p + offset) / denominator    pixels, moved into [0, source - 1]
//
// Nearest neighbour copies the pixel floor(at). Bilinear interpolation weighs it and the next one by their distance.
struct Axis {
  int source, size, step, offset, denominator;
};

// Source pixel `low` and the next one share a sample: `part` of the axis' denominator is the next one's.
struct Sample {
  int low, part;
};

__device__ __forceinline__ Sample sample_of(const Axis& axis, int p, bool interpolate) {
  const int last = (axis.source - 1) * axis.denominator;
  const int at = min(max(axis.step * p + axis.offset, 0), last);
  const int low = at / axis.denominator;
  return {low, interpolate ? at - low * axis.denominator : 0};
}

// How much source pixel s counts for a sample, and 0 for one that isn't the sample's.
template <class T>
__device__ __forceinline__ T weight_of(const Axis& axis, const Sample& sample, int s) {
  const int part = s == sample.low ? axis.denominator - sample.part : s == sample.low + 1 ? sample.part : 0;
  return (T)part / (T)axis.denominator;
}

// The samples that source pixel s may count for: s - 1 < at < s + 1, or s <= at < s + 1 without interpolation; beyond
// the outermost pixels, the outermost samples.
__device__ __forceinline__ int first_sample(const Axis& axis, int s, bool interpolate) {
  if (s == 0) return 0;
  const int least = (interpolate ? s - 1 : s) * axis.denominator - axis.offset;
  if (least < 0) return 0;
  return interpolate ? least / axis.step + 1 : (least + axis.step - 1) / axis.step;
}

__device__ __forceinline__ int last_sample(const Axis& axis, int s) {
  if (s == axis.source - 1) return axis.size - 1;
  const int most = (s + 1) * axis.denominator - axis.offset;  // step p must be below this
  return min((most - 1) / axis.step, axis.size - 1);
}

template <int W, class T>
__device__ __forceinline__ Vector<T, W> mixed(const Vector<T, W>& a, T of_a, const Vector<T, W>& b, T of_b) {
  Vector<T, W> sum;
#pragma unroll
  for (int w = 0; w < W; w++) sum.at[w] = of_a * a.at[w] + of_b * b.at[w];
  return sum;
}

// A thread for each column's vectors of channels; rows along the grid's y, images along its z. Pixels without weight
// aren't read. With `add`, the result is added to `other`, of its size.
template <int W, class T>
__device__ __forceinline__ void resample_vectors(const Axis& rows, const Axis& columns, int images, int channels,
                                                 bool interpolate, bool add, const T* __restrict__ x,
                                                 const T* __restrict__ other, T* __restrict__ y) {
  const int across = channels / W, index = blockIdx.x * blockDim.x + threadIdx.x, q = index / across;
  if (q >= columns.size) return;
  const int channel = (index - q * across) * W;
  const Sample column = sample_of(columns, q, interpolate);
  const T left = weight_of<T>(columns, column, column.low), right = weight_of<T>(columns, column, column.low + 1);
  const i64 row_step = (i64)columns.source * channels;
  for (int p = blockIdx.y; p < rows.size; p += gridDim.y) {
    const Sample row = sample_of(rows, p, interpolate);
    const T above = weight_of<T>(rows, row, row.low), below = weight_of<T>(rows, row, row.low + 1);
    for (int n = blockIdx.z; n < images; n += gridDim.z) {
      const T* corner = x + (((i64)n * rows.source + row.low) * columns.source + column.low) * channels + channel;
      Vector<T, W> value[2][2];
#pragma unroll
      for (int a = 0; a < 2; a++) {
#pragma unroll
        for (int b = 0; b < 2; b++) {
          if ((a == 0 || row.part > 0) && (b == 0 || column.part > 0)) {
            value[a][b] = load<W>(corner + a * row_step + b * channels);
          }
        }
      }
      if (column.part > 0) {
        value[0][0] = mixed(value[0][0], left, value[0][1], right);
        if (row.part > 0) value[1][0] = mixed(value[1][0], left, value[1][1], right);
      }
      if (row.part > 0) value[0][0] = mixed(value[0][0], above, value[1][0], below);
      const i64 to = (((i64)n * rows.size + p) * columns.size + q) * channels + channel;
      if (add) {
        const Vector<T, W> present = load<W>(other + to);
#pragma unroll
        for (int w = 0; w < W; w++) value[0][0].at[w] += present.at[w];
      }
      store<W>(y + to, value[0][0]);
    }
  }
}

template <class T>
__global__ void resample(Axis rows, Axis columns, int images, int channels, int width, bool interpolate, bool add,
                         const T* x, const T* other, T* y) {
  if (width == 1) {
    resample_vectors<1>(rows, columns, images, channels, interpolate, add, x, other, y);
  } else {
    resample_vectors<WIDEST<T>>(rows, columns, images, channels, interpolate, add, x, other, y);
  }
}

// Every source pixel gathers from the samples that it counts for, row by row.
template <int W, class T>
__device__ __forceinline__ void gather_vectors(const Axis& rows, const Axis& columns, int images, int channels,
                                               bool interpolate, const T* __restrict__ grad_y, T* __restrict__ grad_x) {
  const int across = channels / W, index = blockIdx.x * blockDim.x + threadIdx.x, x = index / across;
  if (x >= columns.source) return;
  const int channel = (index - x * across) * W;
  const int left = first_sample(columns, x, interpolate), right = last_sample(columns, x);
  for (int y = blockIdx.y; y < rows.source; y += gridDim.y) {
    const int top = first_sample(rows, y, interpolate), bottom = last_sample(rows, y);
    for (int n = blockIdx.z; n < images; n += gridDim.z) {
      Vector<T, W> sum = {};
      for (int p = top; p <= bottom; p++) {
        const T vertical = interpolate ? weight_of<T>(rows, sample_of(rows, p, true), y) : T(1);
        const T* row = grad_y + ((i64)n * rows.size + p) * columns.size * channels + channel;
        for (int q = left; q <= right; q++) {
          const T horizontal = interpolate ? weight_of<T>(columns, sample_of(columns, q, true), x) : T(1);
          const T weight = vertical * horizontal;
          if (weight == T(0)) continue;
          const Vector<T, W> grad = load<W>(row + (i64)q * channels);
#pragma unroll
          for (int w = 0; w < W; w++) sum.at[w] += weight * grad.at[w];
        }
      }
      store<W>(grad_x + (((i64)n * rows.source + y) * columns.source + x) * channels + channel, sum);
    }
  }
}

template <class T>
__global__ void resample_grad(Axis rows, Axis columns, int images, int channels, int width, bool interpolate,
                              const T* grad_y, T* grad_x) {
  if (width == 1) {
    gather_vectors<1>(rows, columns, images, channels, interpolate, grad_y, grad_x);
  } else {
    gather_vectors<WIDEST<T>>(rows, columns, images, channels, interpolate, grad_y, grad_x);
  }
}

}  // namespace refnet
