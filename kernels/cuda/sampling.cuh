// Along one axis: where a region's samples lie, and what its bins take of each pixel. refnet/ops/sampling.py says why.
//
// Coordinates must be NumPy's bit for bit, for a sample at the border counts or doesn't. So where a product is summed up
// in one, it is a rounded_product, which the compiler doesn't fuse with the sum.
#pragma once

#include "common.cuh"
#include "vector.cuh"

namespace refnet {

// What a launch is told about features, result and rules; laid out as Sampling32 and Sampling64 in roi.py.
template <class T>
struct Sampling {
  int images, height, width, channels;  // of the features
  int regions, rows, columns;           // of the result
  int normalized;                       // crop_and_resize: boxes from 0 to 1, and one sample a bin
  int sampling_ratio, aligned;          // ROIAlign's, as spatial_scale is
  T spatial_scale;
};

// Numbers from first to stop - 1.
struct Range {
  int first, stop;
};

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

// a / n, correctly rounded, for a whole n from 1 to MOST_SAMPLES and its rounded reciprocal: a quotient, corrected to
// within an ulp and then to the nearest (Markstein 1990). Division's own code also minds what can't occur here, exponents
// at the ends of their range, by a call.
template <class T>
__device__ __forceinline__ T divide(T a, T n, T reciprocal) {
  T quotient = a * reciprocal;
  quotient = fused(fused(-quotient, n, a), reciprocal, quotient);
  return fused(fused(-quotient, n, a), reciprocal, quotient);
}

constexpr int MOST_SAMPLES = 1 << 23;  // of a bin: among more of them float doesn't tell neighbours apart
constexpr int FEW_SAMPLES = 8;         // no search among so few

// sample_counts of refnet/ops/roi_align.py, for an adaptive ratio.
template <class T>
__device__ __forceinline__ int pixels_begun(T bin_size) {
  return (int)min(max(T(ceil(bin_size)), T(0)), T(MOST_SAMPLES));
}

// The samples of one region along one axis. They lie in order: rounding never makes a later one overtake.
template <class T>
struct Axis {
  T origin, step;  // where bin 0 begins, and how far it is to the next
  int bins, step_count, samples;
  T divisor, reciprocal;  // samples, at least 1, and 1 / divisor
  int length, margin;
  bool spread;   // over the bin; else its one sample lies where the bin begins
  bool follows;  // the extent follows the box
  T scale;       // how far a coordinate moves with the box's edge

  __device__ __forceinline__ T coordinate(int bin, int sample) const {
    T begin = origin + rounded_product(T(bin), step);
    return spread ? begin + divide((T(sample) + T(0.5)) * step, divisor, reciprocal) : begin;
  }

  // How many steps from the lower edge of the box a sample lies; the upper is step_count further.
  __device__ __forceinline__ T steps(int bin, int sample) const {
    if (spread) return T(bin) + (T(sample) + T(0.5)) * reciprocal;
    return bins > 1 ? T(bin) : T(0.5);
  }

  __device__ __forceinline__ bool inside(T s) const { return s >= T(-margin) && s <= T(length - 1 + margin); }

  // s moved to the nearest pixel centre if it lies beyond all.
  __device__ __forceinline__ T position(T s) const { return min(max(s, T(0)), T(length - 1)); }

  // Whether a sample may weigh anything in the pixels from `low` to `high`.
  __device__ __forceinline__ bool reaches(int low, int high) const {
    if (samples == 0) return false;
    T one = coordinate(0, 0), other = coordinate(bins - 1, samples - 1);
    return max(one, other) >= T(low - 1) && min(one, other) <= T(high + 1);
  }

  // The pixels between the outermost samples of a bin.
  __device__ __forceinline__ Range pixels(int bin) const {
    if (samples == 0) return {0, 0};
    T one = position(coordinate(bin, 0)), other = position(coordinate(bin, samples - 1));
    return {(int)floor(min(one, other)), (int)ceil(max(one, other)) + 1};
  }

  // How many samples of a bin lie before x, along an axis that rises.
  __device__ __forceinline__ int samples_before(int bin, T x) const {
    int low = 0, high = samples;
    while (low < high) {
      int middle = (low + high) / 2;
      if (coordinate(bin, middle) < x)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  // Of the samples of a bin, all that weigh anything in the pixels from `low` to `high`, perhaps with others.
  __device__ __forceinline__ Range samples_near(int bin, int low, int high) const {
    if (samples <= FEW_SAMPLES || step < T(0)) return {0, samples};
    return {samples_before(bin, T(low - 1)), samples_before(bin, T(high + 2))};
  }

  // What a bin takes of `count` pixels from `first` on: the means of its samples' hats.
  template <int count>
  __device__ __forceinline__ Vector<T, count> weights(int bin, int first) const {
    Vector<T, count> sum = {};
    Range near = samples_near(bin, first, first + count - 1);
#pragma unroll 1  // they are few
    for (int sample = near.first; sample < near.stop; sample++) {
      T s = coordinate(bin, sample);
      if (!inside(s)) continue;
#pragma unroll
      for (int k = 0; k < count; k++) sum.at[k] += max(T(1) - fabs(position(s) - T(first + k)), T(0));
    }
#pragma unroll
    for (int k = 0; k < count; k++) sum.at[k] = divide(sum.at[k], divisor, reciprocal);
    return sum;
  }
};

// The axis of the rows, or of the columns, of a region with the box (x1, y1, x2, y2): crop_coordinates, or for the gradient
// of the boxes crop_coordinates_for_gradient, of refnet/ops/crop_and_resize.py; spans of refnet/ops/roi_align.py.
template <class T>
__device__ __forceinline__ Axis<T> make_axis(const Sampling<T>& sampling, const T* box, bool rows, bool for_gradient = false) {
  const T low = box[rows ? 1 : 0], high = box[rows ? 3 : 2];
  const bool crop = sampling.normalized;
  Axis<T> axis = {};
  axis.length = rows ? sampling.height : sampling.width;
  axis.bins = rows ? sampling.rows : sampling.columns;

  T extent;
  if (crop) {
    axis.scale = T(axis.length - 1);
    axis.origin = axis.bins > 1 ? low * axis.scale : T(0.5) * (low + high) * axis.scale;
    extent = for_gradient ? axis.scale : (high - low) * axis.scale;
    axis.follows = true;
  } else {
    axis.scale = sampling.spatial_scale;
    const T offset = sampling.aligned ? T(0.5) : T(0);
    axis.origin = rounded_product(low, axis.scale) - offset;
    extent = (rounded_product(high, axis.scale) - offset) - axis.origin;
    axis.follows = sampling.aligned || extent > T(1);
    if (!sampling.aligned) extent = max(extent, T(1));
  }
  axis.step_count = crop ? max(axis.bins - 1, 1) : axis.bins;
  axis.step = extent / T(axis.step_count);
  if (crop && for_gradient) axis.step *= high - low;

  axis.margin = crop ? 0 : 1;
  axis.spread = !crop;
  axis.samples = 1;
  if (!crop) axis.samples = sampling.sampling_ratio ? sampling.sampling_ratio : pixels_begun(axis.step);
  axis.divisor = T(max(axis.samples, 1));
  axis.reciprocal = T(1) / axis.divisor;
  return axis;
}

}  // namespace refnet
