// What a training step does to all parameters, refnet/ops/updates.py: many arrays in one launch. Compiled without
// contraction, updates equal NumPy's bit for bit.
#include "vector.cuh"

namespace refnet {

enum { MOST_LISTS = 4, MOST_NUMBERS = 3, THREADS = 256 };

// Up to N arrays, and those that belong to them in other lists. Passed by value, within the 4 KB of a kernel's
// parameters: a launch needs no table in memory, and may be recorded in a graph.
//
// A block has a chunk of one array; array i has the chunks from first_chunk[i] to first_chunk[i + 1].
template <class T, int N>
struct Arrays {
  T* lists[MOST_LISTS][N];
  i64 sizes[N];
  const bool* only_if;         // null, or where it is false nothing is written
  T numbers[MOST_NUMBERS][N];  // of each array
  int wide[N];                 // whether its addresses, in all lists, are multiples of 16 bytes
  int first_chunk[N + 1];      // that of arrays there aren't is the number of chunks
};

template <class T, int N>
__device__ __forceinline__ int array_of(const Arrays<T, N>& arrays, int chunk) {
  int low = 0, high = N;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (arrays.first_chunk[middle] <= chunk ? low : high) = middle;
  }
  return low;
}

// W neighbours, by one instruction if their address is a multiple of their size.
template <bool WIDE, int W, class T>
__device__ __forceinline__ Vector<T, W> take(const T* from) {
  if constexpr (WIDE) {
    return load<W>(from);
  } else {
    Vector<T, W> v;
#pragma unroll
    for (int w = 0; w < W; w++) v.at[w] = from[w];
    return v;
  }
}

template <bool WIDE, int W, class T>
__device__ __forceinline__ void put(T* to, const Vector<T, W>& v) {
  if constexpr (WIDE) {
    store<W>(to, v);
  } else {
#pragma unroll
    for (int w = 0; w < W; w++) to[w] = v.at[w];
  }
}

// f(x) for numbers `from` to `to`, whole vectors, x[k] being that of list k; those of the lists `written` are stored.
template <bool WIDE, int W, int LISTS, class T, class F>
__device__ __forceinline__ void pass_over(T* const (&lists)[LISTS], int from, int to, u32 written, F& f) {
#pragma unroll 2
  for (int i = from + W * threadIdx.x; i < to; i += W * THREADS) {
    Vector<T, W> v[LISTS];
#pragma unroll
    for (int k = 0; k < LISTS; k++) v[k] = take<WIDE, W>(lists[k] + i);
#pragma unroll
    for (int w = 0; w < W; w++) {
      T x[LISTS];
#pragma unroll
      for (int k = 0; k < LISTS; k++) x[k] = v[k].at[w];
      f(x);
#pragma unroll
      for (int k = 0; k < LISTS; k++) v[k].at[w] = x[k];
    }
#pragma unroll
    for (int k = 0; k < LISTS; k++)
      if (written >> k & 1) put<WIDE>(lists[k] + i, v[k]);
  }
}

// pass_over the block's chunk of its array. A thread's numbers don't depend on addresses, and so sums don't.
template <int LISTS, class T, int N, class F>
__device__ __forceinline__ void pass_over_chunk(const Arrays<T, N>& arrays, int array, int chunk_size, u32 written, F f) {
  constexpr int W = WIDEST<T>;
  const i64 start = (i64)(blockIdx.x - arrays.first_chunk[array]) * chunk_size;
  const int count = (int)min((i64)chunk_size, arrays.sizes[array] - start), whole = count / W * W;
  T* lists[LISTS];
#pragma unroll
  for (int k = 0; k < LISTS; k++) lists[k] = arrays.lists[k][array] + start;
  if (arrays.wide[array])
    pass_over<true, W>(lists, 0, whole, written, f);
  else
    pass_over<false, W>(lists, 0, whole, written, f);
  pass_over<true, 1>(lists, whole, count, written, f);
}

// Lists: values, gradients, and with MOMENTUM velocities. Numbers: rate, decay.
template <class T, int N, bool MOMENTUM>
__global__ void __launch_bounds__(THREADS)
sgd(const __grid_constant__ Arrays<T, N> arrays, int chunk_size, T momentum, bool nesterov) {
  if (arrays.only_if && !*arrays.only_if) return;
  const int array = array_of(arrays, blockIdx.x);
  const T rate = arrays.numbers[0][array], decay = arrays.numbers[1][array];
  pass_over_chunk<MOMENTUM ? 3 : 2, T>(arrays, array, chunk_size, MOMENTUM ? 0b101 : 0b001, [=](T* x) {
    T direction = decay != 0 ? x[0] * decay + x[1] : x[1];
    if (MOMENTUM) {
      x[2] = x[2] * momentum + direction;
      direction = nesterov ? direction + momentum * x[2] : x[2];
    }
    x[0] -= direction * rate;
  });
}

// Lists: values, gradients, first and second moments. Numbers: what is kept of a value, first and second rate. fresh_1
// and fresh_2 are 1 - beta_1 and 1 - beta_2, rounded once.
template <class T, int N>
__global__ void __launch_bounds__(THREADS)
adamw(const __grid_constant__ Arrays<T, N> arrays, int chunk_size, T beta_1, T fresh_1, T beta_2, T fresh_2, T epsilon) {
  if (arrays.only_if && !*arrays.only_if) return;
  const int array = array_of(arrays, blockIdx.x);
  const T keep = arrays.numbers[0][array], first_rate = arrays.numbers[1][array], second_rate = arrays.numbers[2][array];
  pass_over_chunk<4, T>(arrays, array, chunk_size, 0b1101, [=](T* x) {
    x[2] = x[2] * beta_1 + x[1] * fresh_1;
    x[3] = x[3] * beta_2 + x[1] * x[1] * fresh_2;
    x[0] = x[0] * keep - x[2] / (sqrt(x[3] * second_rate) + epsilon) * first_rate;
  });
}

// Lists: arrays, results.
template <class T, int N>
__global__ void __launch_bounds__(THREADS)
scale(const __grid_constant__ Arrays<T, N> arrays, int chunk_size, const T* __restrict__ factors) {
  const int array = array_of(arrays, blockIdx.x);
  const T factor = factors[array];
  pass_over_chunk<2, T>(arrays, array, chunk_size, 0b10, [=](T* x) { x[1] = x[0] * factor; });
}

// By a warp, in an order that is always the same; the result is lane 0's.
__device__ __forceinline__ double sum_of_warp(double value) {
#pragma unroll
  for (int step = 16; step; step /= 2) value += __shfl_down_sync(~0u, value, step);
  return value;
}

// shares[chunk] = the sum of squares of a chunk. A square of float32 is a float64; the sums are float64's.
template <class T, int N>
__global__ void __launch_bounds__(THREADS)
square_chunks(const __grid_constant__ Arrays<T, N> arrays, int chunk_size, double* __restrict__ shares) {
  __shared__ double of_warp[THREADS / 32];
  double sum = 0;
  const int array = array_of(arrays, blockIdx.x), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  pass_over_chunk<1, T>(arrays, array, chunk_size, 0, [&](T* x) { sum += (double)x[0] * (double)x[0]; });
  sum = sum_of_warp(sum);
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  if (warp) return;
  sum = sum_of_warp(lane < THREADS / 32 ? of_warp[lane] : 0.0);
  if (lane == 0) shares[blockIdx.x] = sum;
}

// squares[array] = the sum of its chunks' shares; a warp each.
template <class T, int N>
__global__ void __launch_bounds__(32)
add_shares(const __grid_constant__ Arrays<T, N> arrays, const double* __restrict__ shares, double* __restrict__ squares) {
  double sum = 0;
  const int end = arrays.first_chunk[blockIdx.x + 1];
  for (int chunk = arrays.first_chunk[blockIdx.x] + threadIdx.x; chunk < end; chunk += 32) sum += shares[chunk];
  sum = sum_of_warp(sum);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

}  // namespace refnet
