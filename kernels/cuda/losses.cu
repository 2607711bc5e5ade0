// Losses, and in the same pass over memory their derivatives; softmax. Nothing is reduced over elements or rows here.
// A number that isn't one gives a loss that isn't: that is how a training step finds out.
#include "vector.cuh"

namespace refnet {

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float logarithm1p(float x) { return log1pf(x); }
__device__ __forceinline__ double logarithm1p(double x) { return log1p(x); }

// ---- element by element ----

template <class T>
struct Loss {
  T value, derivative;
};

// refnet/ops/binary_cross_entropy.py
struct BinaryCrossEntropy {
  template <class T>
  static __device__ __forceinline__ Loss<T> of(T logit, T target, T) {
    const T small = exponential(logit > 0 ? -logit : logit);  // in (0, 1]
    const T sigmoid = (logit >= 0 ? T(1) : small) / (1 + small);
    return {(logit > 0 ? logit : T(0)) - logit * target + logarithm1p(small), sigmoid - target};
  }
};

// refnet/ops/smooth_l1.py; without contraction equal to it bit for bit
struct SmoothL1 {
  template <class T>
  static __device__ __forceinline__ Loss<T> of(T prediction, T target, T width) {
    const T difference = prediction - target, distance = difference < 0 ? -difference : difference;
    if (width == 0) return {distance, difference > 0 ? T(1) : difference < 0 ? T(-1) : difference};
    const T near = width <= distance ? width : distance, steepness = near / width;
    return {near * steepness / 2 + (distance - near), difference < 0 ? -steepness : steepness};
  }
};

// losses[i], derivative[i] = F(a[i], b[i]). A thread has PER_THREAD elements, a block's width apart.
template <class F, class T, int PER_THREAD>
__global__ void __launch_bounds__(256)
elementwise_loss(i64 count, const T* __restrict__ a, const T* __restrict__ b, T parameter, T* __restrict__ losses,
                 T* __restrict__ derivative) {
  const i64 first = (i64)blockIdx.x * PER_THREAD * blockDim.x + threadIdx.x;
  T p[PER_THREAD], q[PER_THREAD];
#pragma unroll
  for (int k = 0; k < PER_THREAD; k++) {
    const i64 i = first + k * blockDim.x;
    if (i < count) p[k] = a[i], q[k] = b[i];
  }
#pragma unroll
  for (int k = 0; k < PER_THREAD; k++) {
    const i64 i = first + k * blockDim.x;
    if (i >= count) return;
    const Loss<T> loss = F::of(p[k], q[k], parameter);
    losses[i] = loss.value, derivative[i] = loss.derivative;
  }
}

// ---- row by row ----

// Numbers of a row that a thread has under way at a time; more exponentials in double precision would spill registers.
template <class T>
constexpr int UNROLL = sizeof(T) == 4 ? 4 : 1;

// What softmax needs to know of a row: its greatest number, and the sum of exp(x - greatest).
template <class T>
struct Row {
  T greatest, total;
};

// By a warp. The order of the sum depends on the row's length only.
template <class T>
__device__ __forceinline__ Row<T> survey(const T* __restrict__ x, int length, int lane) {
  T greatest = x[0];
#pragma unroll(UNROLL<T>)
  for (int k = lane; k < length; k += 32) greatest = max(greatest, x[k]);
#pragma unroll
  for (int step = 16; step; step /= 2) greatest = max(greatest, __shfl_xor_sync(~0u, greatest, step));
  T total = 0;
#pragma unroll(UNROLL<T>)
  for (int k = lane; k < length; k += 32) total += exponential(x[k] - greatest);
#pragma unroll
  for (int step = 16; step; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  return {greatest, total};
}

// A warp a row, whatever its length: from 2 classes to the 3,136 places of a keypoint, which stay in the L1 cache from
// one pass to the next.
template <class T>
__global__ void __launch_bounds__(128)
softmax(int rows, int length, const T* __restrict__ x, T* __restrict__ y) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += (i64)row * length, y += (i64)row * length;
  const Row<T> found = survey(x, length, lane);
#pragma unroll(UNROLL<T>)
  for (int k = lane; k < length; k += 32) y[k] = exponential(x[k] - found.greatest) / found.total;
}

// refnet/ops/cross_entropy.py. The host doesn't know the classes: one that there isn't makes the loss no number.
template <class T>
__global__ void __launch_bounds__(128)
cross_entropy(int rows, int length, const T* __restrict__ logits, const i64* __restrict__ classes,
              T* __restrict__ losses, T* __restrict__ derivative) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  logits += (i64)row * length, derivative += (i64)row * length;
  const i64 own = classes[row];
  const Row<T> found = survey(logits, length, lane);
#pragma unroll(UNROLL<T>)
  for (int k = lane; k < length; k += 32)
    derivative[k] = exponential(logits[k] - found.greatest) / found.total - (k == own ? T(1) : T(0));
  if (lane == 0) {
    const bool exists = own >= 0 && own < length;
    losses[row] = exists ? logarithm(found.total) - (logits[own] - found.greatest) : T(0) / T(0);
  }
}

}  // namespace refnet
