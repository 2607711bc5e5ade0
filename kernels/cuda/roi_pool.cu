// ROI pooling, the maximum of every bin, and its gradient: refnet/ops/roi_pool.py.
#include "common.cuh"
#include "tiles.cuh"

using namespace refnet;

constexpr i64 NOWHERE = -1;  // the source of a bin without pixels

__device__ __forceinline__ float nearest(float x) { return roundf(x); }  // halves away from zero
__device__ __forceinline__ double nearest(double x) { return round(x); }

struct Pixels {
  int first, stop;
};

// The pixels of a bin, along one axis of a region from `low` to `high`.
template <class T>
__device__ __forceinline__ Pixels pixels_of_bin(T low, T high, int length, int bins, int bin, T scale) {
  const T start = nearest(low * scale), last = nearest(high * scale);
  const T size = max(last - start + T(1), T(1)) / T(bins);
  const T first = start + floor(T(bin) * size), stop = start + ceil((T(bin) + T(1)) * size);
  return {(int)min(max(first, T(0)), T(length)), (int)min(max(stop, T(0)), T(length))};
}

// A warp a bin, a channel a lane. NaN counts as the greatest, as it does for NumPy.
template <class T>
__global__ void __launch_bounds__(256, 4) roi_pool_forward(
    const T* features, const T* boxes, const i64* image_index, int images, int height, int width, int channels,
    int regions, int rows, int columns, T scale, T* output, i64* source) {
  const u32 number = blockIdx.x * blockDim.y + threadIdx.y;
  if (number >= (u32)regions * rows * columns) return;
  const int channel = blockIdx.y * 32 + threadIdx.x;
  if (channel >= channels) return;
  const int region = number / (rows * columns), bin = number % (rows * columns);
  const T* box = boxes + (i64)region * 4;
  const Pixels ys = pixels_of_bin(box[1], box[3], height, rows, bin / columns, scale);
  const Pixels xs = pixels_of_bin(box[0], box[2], width, columns, bin % columns, scale);
  const i64 image = image_index[region];

  T greatest = 0;
  i64 place = NOWHERE;
  if (image < 0 || image >= images) {
    greatest = not_a_number<T>();
  } else {
    for (int y = ys.first; y < ys.stop; y++) {
      const T* line = features + ((image * height + y) * width) * channels + channel;
      for (int x = xs.first; x < xs.stop; x++) {
        const T value = line[(i64)x * channels];
        const bool greater = value > greatest || (value != value && greatest == greatest);
        if (place != NOWHERE && !greater) continue;
        greatest = value;
        place = y * width + x;
      }
    }
  }
  output[(i64)number * channels + channel] = greatest;
  source[(i64)number * channels + channel] = place;
}

// Where on the map the sources of a bin lie, as (left, top, right, bottom), all included; none: left > right. A warp a
// bin.
__global__ void __launch_bounds__(256) source_bounds(
    const i64* source, int bins, int width, int channels, int4* bounds) {
  const int bin = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
  if (bin >= bins) return;
  int left = width, top = 0x7fffffff, right = -1, bottom = -1;
  for (int channel = lane; channel < channels; channel += 32) {
    const i64 place = source[(i64)bin * channels + channel];
    if (place == NOWHERE) continue;
    const int y = (int)place / width, x = (int)place - y * width;
    left = min(left, x), top = min(top, y), right = max(right, x), bottom = max(bottom, y);
  }
#pragma unroll
  for (int distance = 16; distance; distance /= 2) {
    left = min(left, __shfl_xor_sync(ALL_LANES, left, distance));
    top = min(top, __shfl_xor_sync(ALL_LANES, top, distance));
    right = max(right, __shfl_xor_sync(ALL_LANES, right, distance));
    bottom = max(bottom, __shfl_xor_sync(ALL_LANES, bottom, distance));
  }
  if (lane == 0) bounds[bin] = int4{left, top, right, bottom};
}

// Every bin's gradient goes to where its maximum was. A block owns a tile of pixels and a channel a thread; it finds the
// bins whose sources may lie in its tile, and adds up their gradients in the bins' order, as the specification does.
template <class T, int tile, int warps>
__global__ void __launch_bounds__(warps * 32) roi_pool_grad(
    const T* grad_output, const i64* source, const int4* bounds, const i64* image_index, int bins, int bins_of_region,
    int height, int width, int channels, T* grad) {
  __shared__ T sum[tile * tile][warps * 32];  // a thread's own column: no other touches it
  __shared__ int reaching[warps * 32];
  __shared__ int found[warps];
  const int thread = threadIdx.y * 32 + threadIdx.x;
  const Tile<tile, warps * 32> own(channels);
  const int channel = own.channel + thread;
  for (int i = 0; i < tile * tile; i++) sum[i][thread] = T(0);

  for (int base = 0; base < bins; base += warps * 32) {
    const int candidate = base + thread;
    bool reaches = candidate < bins && image_index[candidate / bins_of_region] == own.image;
    if (reaches) {
      const int4 at = bounds[candidate];
      reaches = at.x < own.left + tile && at.z >= own.left && at.y < own.top + tile && at.w >= own.top;
    }
    const int count = select_in_order<warps>(reaches, candidate, reaching, found);
    for (int i = 0; i < count && channel < channels; i++) {
      const i64 element = (i64)reaching[i] * channels + channel;
      const i64 place = source[element];
      if (place == NOWHERE) continue;
      const int y = (int)place / width - own.top, x = (int)place % width - own.left;
      if (y >= 0 && y < tile && x >= 0 && x < tile) sum[y * tile + x][thread] += grad_output[element];
    }
  }

  if (channel >= channels) return;
  const int rows = min(tile, height - own.top), columns = min(tile, width - own.left);
  for (int y = 0; y < rows; y++)
    for (int x = 0; x < columns; x++)
      grad[(((i64)own.image * height + own.top + y) * width + own.left + x) * channels + channel] =
          sum[y * tile + x][thread];
}
