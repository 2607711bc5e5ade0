// crop_and_resize and ROIAlign, Y f X^T for each region, and their gradients: refnet/ops/sampling.py has the equations.
//
// Y and X are nearly all zero, and never stored. A warp computes what a bin takes of 32 pixels at a time, one a lane;
// then its lanes are channels, and it walks over the pixels that weigh something, each once however many samples touch
// it. Coordinates are thus computed once a sample for all channels, and neighbouring lanes read neighbouring numbers.
#include "sampling.cuh"
#include "tiles.cuh"

using namespace refnet;

// One pixel's weight in a bin: an entry of Y or X.
template <class T>
struct Hat {
  T value;

  static __device__ __forceinline__ Hat of(const Axis<T>& axis, int bin, int pixel) {
    return {axis.template weights<1>(bin, pixel).at[0]};
  }
  __device__ __forceinline__ bool present() const { return value != T(0); }
  __device__ __forceinline__ Hat from(int lane) const { return {__shfl_sync(ALL_LANES, value, lane)}; }
};

// The same, with its derivative when all samples move together, and when the step grows.
// The hat's slope is 1 for the pixel above a sample, -1 for that below, and 0 at an integer.
template <class T>
struct Slope {
  T value, together, stretched;

  static __device__ __forceinline__ Slope of(const Axis<T>& axis, int bin, int pixel) {
    Slope sum = {};
    Range near = axis.samples_near(bin, pixel, pixel);
#pragma unroll 1  // they are few
    for (int sample = near.first; sample < near.stop; sample++) {
      T s = axis.coordinate(bin, sample);
      if (!axis.inside(s)) continue;
      T position = axis.position(s);
      T slope = T(T(pixel) == ceil(position)) - T(T(pixel) == floor(position));
      sum.value += max(T(1) - fabs(position - T(pixel)), T(0));
      sum.together += slope;
      sum.stretched = fused(slope, axis.steps(bin, sample), sum.stretched);
    }
    return {sum.value * axis.reciprocal, sum.together * axis.reciprocal, sum.stretched * axis.reciprocal};
  }
  __device__ __forceinline__ bool present() const { return value != T(0) || together != T(0) || stretched != T(0); }
  __device__ __forceinline__ Slope from(int lane) const {
    return {__shfl_sync(ALL_LANES, value, lane), __shfl_sync(ALL_LANES, together, lane),
            __shfl_sync(ALL_LANES, stretched, lane)};
  }
};

// The weights, a lane each, of the pixels from `first` on as far as `pixels` goes.
template <class Weight, class T>
__device__ __forceinline__ Weight weights_of_lanes(const Axis<T>& axis, int bin, Range pixels, int first) {
  const int pixel = first + threadIdx.x;
  if (pixel < pixels.stop) return Weight::of(axis, bin, pixel);
  return {};
}

// The pixels of an axis that a bin reaches, and the weights of the first 32.
template <class Weight>
struct Reach {
  Range pixels;
  Weight first;

  template <class T>
  __device__ __forceinline__ Reach(const Axis<T>& axis, int bin)
      : pixels(axis.pixels(bin)), first(weights_of_lanes<Weight>(axis, bin, pixels, pixels.first)) {}
};

// Calls visit(offset, row weight, column weight) in all lanes of the warp for every pixel that bin (p, q) takes
// something of, in reading order. `down` is the reach of p among the rows, which a row of bins shares; `pitch` is the
// offset from a pixel to the next.
template <class Weight, class T, class Visit>
__device__ __forceinline__ void visit_pixels(const Axis<T>& rows, int p, const Reach<Weight>& down,
                                             const Axis<T>& columns, int q, int pitch, Visit visit) {
  const Reach<Weight> across(columns, q);
  for (int top = down.pixels.first; top < down.pixels.stop; top += 32) {
    Weight own_row = down.first;
    if (top > down.pixels.first) own_row = weights_of_lanes<Weight>(rows, p, down.pixels, top);
    const u32 present_rows = __ballot_sync(ALL_LANES, own_row.present());
    for (int left = across.pixels.first; left < across.pixels.stop; left += 32) {
      Weight own_column = across.first;
      if (left > across.pixels.first) own_column = weights_of_lanes<Weight>(columns, q, across.pixels, left);
      const u32 present_columns = __ballot_sync(ALL_LANES, own_column.present());
      for (u32 left_rows = present_rows; left_rows; left_rows &= left_rows - 1) {
        const int i = __ffs(left_rows) - 1;
        const Weight row = own_row.from(i);
        const i64 line = ((i64)(top + i) * columns.length + left) * pitch;
        for (u32 left_columns = present_columns; left_columns; left_columns &= left_columns - 1) {
          const int j = __ffs(left_columns) - 1;
          visit(line + j * pitch, row, own_column.from(j));
        }
      }
    }
  }
}

// Neighbouring bins of one row, which a warp takes in turn: those from (p, first) to (p, stop - 1) of a region.
struct Run {
  int region, p, first, stop;

  template <class T>
  __device__ __forceinline__ Run(u32 number, int length, const Sampling<T>& sampling) {
    const u32 runs = (sampling.columns + length - 1) / length, row = number / runs;
    region = row / sampling.rows;
    p = row % sampling.rows;
    first = number % runs * length;
    stop = min(first + length, sampling.columns);
  }
};

template <class T>
__device__ __forceinline__ bool in_range(i64 image, const Sampling<T>& sampling) {
  return image >= 0 && image < sampling.images;
}

template <class T, int width>
__device__ __forceinline__ void atomic_add(T* to, const Vector<T, width>& value) {
  if constexpr (sizeof(T) == 4 && width == 4) {
    atomic_add4(to, value.at[0], value.at[1], value.at[2], value.at[3]);
  } else {
#pragma unroll
    for (int c = 0; c < width; c++) atomicAdd(to + c, value.at[c]);
  }
}

// The elements of one image, in vectors.
template <class T>
__device__ __forceinline__ i64 image_size(const Sampling<T>& sampling, int vectors) {
  return (i64)sampling.height * sampling.width * vectors;
}

// y = Y f X^T. A warp a run of bins; blockIdx.y counts channels by `held` vectors a lane. What crop_and_resize samples
// beyond the image is `outside`; an image that isn't there gives NaN.
template <class T, int width, int held>
__global__ void __launch_bounds__(256, sizeof(T) == 4 ? 3 : 2) pool_regions(
    const T* __restrict__ features, const T* __restrict__ boxes, const i64* __restrict__ image_index,
    Sampling<T> sampling, int runs, int length, T outside, T* output) {
  const int number = blockIdx.x * blockDim.y + threadIdx.y;
  if (number >= runs) return;
  const Run run(number, length, sampling);
  const T* box = boxes + (i64)run.region * 4;
  const Axis<T> rows = make_axis(sampling, box, true), columns = make_axis(sampling, box, false);
  const int vectors = sampling.channels / width;
  const int first = blockIdx.y * (32 * held) + threadIdx.x;
  const i64 image = image_index[run.region];
  const bool present = in_range(image, sampling);
  const bool row_inside = present && (!sampling.normalized || rows.inside(rows.coordinate(run.p, 0)));
  const auto* from = reinterpret_cast<const Vector<T, width>*>(features) + image * image_size(sampling, vectors) + first;
  const i64 first_bin = ((i64)run.region * sampling.rows + run.p) * sampling.columns;  // of the row
  const T otherwise = present ? outside : not_a_number<T>();
  const Reach<Hat<T>> down(rows, run.p);

  for (int q = run.first; q < run.stop; q++) {
    const bool inside = row_inside && (!sampling.normalized || columns.inside(columns.coordinate(q, 0)));
    Vector<T, width> sum[held];
#pragma unroll
    for (int k = 0; k < held; k++)
#pragma unroll
      for (int c = 0; c < width; c++) sum[k].at[c] = inside ? T(0) : otherwise;
    if (inside)
      visit_pixels(rows, run.p, down, columns, q, vectors, [&](i64 offset, Hat<T> row, Hat<T> column) {
        const T weight = row.value * column.value;
#pragma unroll
        for (int k = 0; k < held; k++) {
          if (first + 32 * k >= vectors) continue;
          const Vector<T, width> feature = from[offset + 32 * k];
#pragma unroll
          for (int c = 0; c < width; c++) sum[k].at[c] = fused(weight, feature.at[c], sum[k].at[c]);
        }
      });
    auto* to = reinterpret_cast<Vector<T, width>*>(output) + (first_bin + q) * vectors + first;
#pragma unroll
    for (int k = 0; k < held; k++)
      if (first + 32 * k < vectors) to[32 * k] = sum[k];
  }
}

// The adjoint, Y^T g X, added to `grad` as it comes: the order of sums, and so their last bits, change from run to run.
template <class T, int width, int held>
__global__ void __launch_bounds__(256, sizeof(T) == 4 ? 3 : 2) scatter_gradient(
    const T* __restrict__ grad_output, const T* __restrict__ boxes, const i64* __restrict__ image_index,
    Sampling<T> sampling, int runs, int length, T* grad) {
  const int number = blockIdx.x * blockDim.y + threadIdx.y;
  if (number >= runs) return;
  const Run run(number, length, sampling);
  const i64 image = image_index[run.region];
  if (!in_range(image, sampling)) return;
  const T* box = boxes + (i64)run.region * 4;
  const Axis<T> rows = make_axis(sampling, box, true), columns = make_axis(sampling, box, false);
  const int vectors = sampling.channels / width;
  const int first = blockIdx.y * (32 * held) + threadIdx.x;
  const auto* from = reinterpret_cast<const Vector<T, width>*>(grad_output) +
                     ((i64)run.region * sampling.rows + run.p) * sampling.columns * vectors;
  T* to = grad + (image * image_size(sampling, vectors) + first) * width;
  const Reach<Hat<T>> down(rows, run.p);

  for (int q = run.first; q < run.stop; q++) {
    Vector<T, width> own[held] = {};
#pragma unroll
    for (int k = 0; k < held; k++)
      if (first + 32 * k < vectors) own[k] = from[q * vectors + first + 32 * k];
    visit_pixels(rows, run.p, down, columns, q, vectors, [&](i64 offset, Hat<T> row, Hat<T> column) {
      const T weight = row.value * column.value;
#pragma unroll
      for (int k = 0; k < held; k++) {
        if (first + 32 * k >= vectors) continue;
        Vector<T, width> share;
#pragma unroll
        for (int c = 0; c < width; c++) share.at[c] = weight * own[k].at[c];
        atomic_add(to + (offset + 32 * k) * width, share);
      }
    });
  }
}

// The adjoint again, with the same bits whatever the schedule, and no atomics: a block owns a tile of pixels and 32
// vectors of channels, finds the regions that reach it, and adds up what they send in the regions' order.
//
// A warp owns `strip` neighbouring pixels of one row. `batch` regions at a time, the block first computes what their
// bins take of the strips that its tile consists of, by rows and by columns; a strip's weights in one bin are a vector.
template <class T, int width, int tile, int strip>
__global__ void __launch_bounds__(tile * tile / strip * 32, sizeof(T) == 4 ? 2 : 1) gather_gradient(
    const T* __restrict__ grad_output, const T* __restrict__ boxes, const i64* __restrict__ image_index, Sampling<T> sampling, int batch, T* grad) {
  constexpr int warps = tile * tile / strip, strips = tile / strip;
  __shared__ int reaching[warps * 32];
  __shared__ int found[warps];
  REFNET_DYNAMIC_SHARED(unsigned char, shared);
  const int slots = max(sampling.rows, sampling.columns);
  auto* weights = reinterpret_cast<Vector<T, strip>*>(shared);                      // batch, 2 strips, slots
  auto* touched = reinterpret_cast<Range*>(weights + batch * 2 * strips * slots);   // batch, 2 strips: which bins
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int vectors = sampling.channels / width;
  const Tile<tile, 32> own(vectors);
  const int channel = own.channel + lane;
  const int row = warp / strips, column = warp % strips;

  Vector<T, width> sum[strip] = {};
  for (int base = 0; base < sampling.regions; base += warps * 32) {
    const int candidate = base + warp * 32 + lane;
    bool reaches = candidate < sampling.regions && image_index[candidate] == own.image;
    if (reaches) {
      const T* box = boxes + (i64)candidate * 4;
      reaches = make_axis(sampling, box, true).reaches(own.top, own.top + tile - 1) &&
                make_axis(sampling, box, false).reaches(own.left, own.left + tile - 1);
    }
    const int count = select_in_order<warps>(reaches, candidate, reaching, found);

    for (int start = 0; start < count; start += batch) {
      const int present = min(batch, count - start);
      for (int task = warp; task < present * 2 * strips; task += warps) {
        const int line = task % (2 * strips);  // the strips of rows, then those of columns
        const bool by_rows = line < strips;
        const int pixel = (by_rows ? own.top : own.left) + line % strips * strip;
        const Axis<T> axis = make_axis(sampling, boxes + (i64)reaching[start + task / (2 * strips)] * 4, by_rows);
        Range range = {axis.bins, 0};
        for (int bin = lane; bin - lane < axis.bins; bin += 32) {
          bool any = false;
          if (bin < axis.bins) {
            const Vector<T, strip> of_bin = axis.template weights<strip>(bin, pixel);
#pragma unroll
            for (int k = 0; k < strip; k++) any = any || of_bin.at[k] != T(0);
            weights[task * slots + bin] = of_bin;
          }
          const u32 votes = __ballot_sync(ALL_LANES, any);
          if (votes) {
            range.first = min(range.first, bin - lane + __ffs(votes) - 1);
            range.stop = bin - lane + 32 - __clz(votes);
          }
        }
        if (lane == 0) touched[task] = range;
      }
      __syncthreads();

      for (int i = 0; i < present && channel < vectors; i++) {
        const int by_rows = i * 2 * strips + row / strip, by_columns = i * 2 * strips + strips + column;
        const Range ps = touched[by_rows], qs = touched[by_columns];
        const i64 first_row = (i64)reaching[start + i] * sampling.rows;
        for (int p = ps.first; p < ps.stop; p++) {
          const T row_weight = weights[by_rows * slots + p].at[row % strip];
          if (row_weight == T(0)) continue;
          const auto* from = reinterpret_cast<const Vector<T, width>*>(grad_output) +
                             (first_row + p) * sampling.columns * vectors + channel;
#pragma unroll 2
          for (int q = qs.first; q < qs.stop; q++) {
            const Vector<T, width> g = from[q * vectors];
            const Vector<T, strip> column_weights = weights[by_columns * slots + q];
#pragma unroll
            for (int k = 0; k < strip; k++) {
              const T weight = row_weight * column_weights.at[k];
#pragma unroll
              for (int c = 0; c < width; c++) sum[k].at[c] = fused(weight, g.at[c], sum[k].at[c]);
            }
          }
        }
      }
      __syncthreads();
    }
  }

  const int y = own.top + row, x = own.left + column * strip;
  if (channel >= vectors || y >= sampling.height) return;
  auto* to = reinterpret_cast<Vector<T, width>*>(grad) + own.image * image_size(sampling, vectors) +
             ((i64)y * sampling.width + x) * vectors + channel;
#pragma unroll
  for (int k = 0; k < strip; k++)
    if (x + k < sampling.width) to[k * vectors] = sum[k];
}

// The gradient of the boxes. A block a region: its warps take turns over the bins, and in the end their sums are added
// up in a fixed order. Each sample's coordinate is start + steps · step.
template <class T, int width, int held, int warps>
__global__ void __launch_bounds__(warps * 32, sizeof(T) == 4 ? 2 : 1) box_gradient(
    const T* __restrict__ grad_output, const T* __restrict__ features, const T* __restrict__ boxes, const i64* __restrict__ image_index, Sampling<T> sampling, T* grad) {
  __shared__ T sums[warps][4];
  const int region = blockIdx.x, lane = threadIdx.x, warp = threadIdx.y;
  const T* box = boxes + (i64)region * 4;
  const Axis<T> rows = make_axis(sampling, box, true, true), columns = make_axis(sampling, box, false, true);
  const int vectors = sampling.channels / width, bins = sampling.rows * sampling.columns;
  const i64 image = image_index[region];
  if (!in_range(image, sampling)) {
    if (warp == 0 && lane < 4) grad[(i64)region * 4 + lane] = not_a_number<T>();
    return;
  }
  const auto* from = reinterpret_cast<const Vector<T, width>*>(features) + image * image_size(sampling, vectors);
  const auto* upper = reinterpret_cast<const Vector<T, width>*>(grad_output) + (i64)region * bins * vectors;

  T start_x = 0, start_y = 0, step_x = 0, step_y = 0;
  for (int bin = warp; bin < bins; bin += warps) {
    const int p = bin / sampling.columns, q = bin % sampling.columns;
    const Reach<Slope<T>> down(rows, p);
    for (int first = lane; first - lane < vectors; first += 32 * held) {
      Vector<T, width> g[held] = {};
#pragma unroll
      for (int k = 0; k < held; k++)
        if (first + 32 * k < vectors) g[k] = upper[(i64)bin * vectors + first + 32 * k];
      visit_pixels(rows, p, down, columns, q, vectors, [&](i64 offset, Slope<T> row, Slope<T> column) {
        T product = 0;  // of gradient and features, over this lane's channels
#pragma unroll
        for (int k = 0; k < held; k++) {
          if (first + 32 * k >= vectors) continue;
          const Vector<T, width> feature = from[offset + first + 32 * k];
#pragma unroll
          for (int c = 0; c < width; c++) product = fused(g[k].at[c], feature.at[c], product);
        }
        start_y = fused(product, row.together * column.value, start_y);
        step_y = fused(product, row.stretched * column.value, step_y);
        start_x = fused(product, row.value * column.together, start_x);
        step_x = fused(product, row.value * column.stretched, step_x);
      });
    }
  }

  T own[4] = {start_x, start_y, step_x, step_y};
#pragma unroll
  for (int k = 0; k < 4; k++) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) own[k] += __shfl_xor_sync(ALL_LANES, own[k], distance);
    if (lane == 0) sums[warp][k] = own[k];
  }
  __syncthreads();
  if (warp || lane >= 2) return;
  T start = 0, step = 0;  // of x in lane 0, of y in lane 1
  for (int i = 0; i < warps; i++) {
    start += sums[i][lane];
    step += sums[i][2 + lane];
  }
  const bool follows = lane ? rows.follows : columns.follows;
  const T extent = follows ? step / T(lane ? rows.step_count : columns.step_count) : T(0);
  const T scale = lane ? rows.scale : columns.scale;
  grad[(i64)region * 4 + lane] = (start - extent) * scale;
  grad[(i64)region * 4 + 2 + lane] = extent * scale;
}
