// Operations that do little arithmetic on many numbers: ReLU, affine maps of channels, batch normalisation. They take
// as long as memory does, so every thread has several loads of 16 bytes under way at a time, and nothing is read twice
// that can be kept.
//
// Arrays are rows of channels. `width` is how many neighbouring numbers a thread moves at once: WIDEST<T>, where all
// addresses and the number of channels are multiples of it, else 1.
#include "vector.cuh"

namespace refnet {

enum { UNROLL = 4 };  // rows, or vectors, that a thread loads before it computes

// y = f(a, b), element by element

struct Relu {
  // NaN stays NaN; a zero of either sign becomes 0
  template <class T>
  static __device__ __forceinline__ T of(T x, T) {
    return x <= T(0) ? T(0) : x;
  }
};

struct ReluGrad {
  // a product, as in the specification: a gradient that isn't finite gives NaN where y isn't positive
  template <class T>
  static __device__ __forceinline__ T of(T grad, T y) {
    return grad * (y > T(0) ? T(1) : T(0));
  }
};

template <class F, int W, class T>
__device__ __forceinline__ void elementwise_vectors(i64 count, const T* __restrict__ a, const T* __restrict__ b,
                                                    T* __restrict__ y) {
  const i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x, threads = (i64)gridDim.x * blockDim.x;
  const i64 vectors = count / W;
#pragma unroll 1  // more would first divide 64-bit numbers to count the rounds
  for (i64 first = thread; first < vectors; first += UNROLL * threads) {
    Vector<T, W> p[UNROLL], q[UNROLL];
#pragma unroll
    for (int k = 0; k < UNROLL; k++) {
      const i64 i = first + k * threads;
      if (i < vectors) {
        p[k] = load<W>(a + i * W);
        q[k] = load<W>(b + i * W);
      }
    }
#pragma unroll
    for (int k = 0; k < UNROLL; k++) {
      const i64 i = first + k * threads;
      if (i < vectors) {
#pragma unroll
        for (int w = 0; w < W; w++) p[k].at[w] = F::of(p[k].at[w], q[k].at[w]);
        store<W>(y + i * W, p[k]);
      }
    }
  }
  const i64 rest = vectors * W + thread;
  if (rest < count) y[rest] = F::of(a[rest], b[rest]);
}

template <class F, class T>
__global__ void elementwise(i64 count, int width, const T* a, const T* b, T* y) {
  if (width == 1) {
    elementwise_vectors<F, 1>(count, a, b, y);
  } else {
    elementwise_vectors<F, WIDEST<T>>(count, a, b, y);
  }
}

// y = f(x, z; scale, rate, shift), with three constants a channel

struct Scale {
  template <class T>
  static __device__ __forceinline__ T of(T x, T, T scale, T, T) {
    return scale * x;
  }
};

struct Affine {
  template <class T>
  static __device__ __forceinline__ T of(T x, T, T scale, T, T shift) {
    return scale * x + shift;
  }
};

struct Combination {
  template <class T>
  static __device__ __forceinline__ T of(T x, T z, T scale, T rate, T shift) {
    return scale * x + rate * z + shift;
  }
};

// The grid's x and the block's y go over rows, the grid's y and the block's x over vectors of channels: a thread keeps
// the constants of its channels for all of its rows.
template <class F, int W, class T>
__device__ __forceinline__ void per_channel_vectors(i64 rows, int channels, const T* __restrict__ x,
                                                    const T* __restrict__ z, const T* __restrict__ scale,
                                                    const T* __restrict__ rate, const T* __restrict__ shift,
                                                    T* __restrict__ y) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * W;
  if (channel >= channels) return;
  const Vector<T, W> scales = load<W>(scale + channel), rates = load<W>(rate + channel),
                     shifts = load<W>(shift + channel);
  const i64 step = (i64)gridDim.x * blockDim.y;
#pragma unroll 1
  for (i64 first = (i64)blockIdx.x * blockDim.y + threadIdx.y; first < rows; first += UNROLL * step) {
    Vector<T, W> p[UNROLL], q[UNROLL];
#pragma unroll
    for (int k = 0; k < UNROLL; k++) {
      const i64 row = first + k * step;
      if (row < rows) {
        p[k] = load<W>(x + row * channels + channel);
        q[k] = load<W>(z + row * channels + channel);
      }
    }
#pragma unroll
    for (int k = 0; k < UNROLL; k++) {
      const i64 row = first + k * step;
      if (row < rows) {
#pragma unroll
        for (int w = 0; w < W; w++) {
          p[k].at[w] = F::of(p[k].at[w], q[k].at[w], scales.at[w], rates.at[w], shifts.at[w]);
        }
        store<W>(y + row * channels + channel, p[k]);
      }
    }
  }
}

template <class F, class T>
__global__ void per_channel(i64 rows, int channels, int width, const T* x, const T* z, const T* scale, const T* rate,
                            const T* shift, T* y) {
  if (width == 1) {
    per_channel_vectors<F, 1>(rows, channels, x, z, scale, rate, shift, y);
  } else {
    per_channel_vectors<F, WIDEST<T>>(rows, channels, x, z, scale, rate, shift, y);
  }
}

// scale = gamma / sqrt(variance + epsilon), shift = beta - scale mean, rounded step by step as in the specification
template <class T>
__global__ void fold(int channels, T epsilon, const T* gamma, const T* beta, const T* mean, const T* variance, T* scale,
                     T* shift) {
  const int channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  const T folded = gamma[channel] * (T(1) / (T)sqrt(variance[channel] + epsilon));
  scale[channel] = folded;
  shift[channel] = beta[channel] - folded * mean[channel];
}

// running = keep running + momentum statistic, of the mean and of the corrected variance
template <class T>
__global__ void move_statistics(int channels, T keep, T momentum, T correction, const T* mean, const T* variance,
                                T* running_mean, T* running_variance) {
  const int channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  running_mean[channel] = running_mean[channel] * keep + momentum * mean[channel];
  running_variance[channel] = running_variance[channel] * keep + momentum * (variance[channel] * correction);
}

// Sums over the rows, in two launches. The first writes the blocks' shares of two sums, a row of `channels` each, and
// the second adds the shares up and says what they mean. Which thread sums what doesn't depend on the device, so the
// same arrays give the same bits. Four rows are summed as they are, the fours in float64: the error is that of a few
// roundings, whatever the number of rows.

// A block's shares of both sums of its channels: halves its rows until one is left.
template <int W, int THREADS>
__device__ __forceinline__ void write_shares(const double (&product)[W], const double (&sum)[W], int channels,
                                             int channel, double* __restrict__ shares, double* shared) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  double* products = shared;
  double* sums = shared + W * THREADS;
#pragma unroll
  for (int w = 0; w < W; w++) {
    products[w * THREADS + thread] = product[w];
    sums[w * THREADS + thread] = sum[w];
  }
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.y < half) {
#pragma unroll
      for (int w = 0; w < W; w++) {
        const int here = w * THREADS + thread, there = here + half * blockDim.x;
        products[here] += products[there];
        sums[here] += sums[there];
      }
    }
  }
  if (threadIdx.y == 0 && channel < channels) {
    double* share = shares + (i64)blockIdx.x * 2 * channels + channel;
#pragma unroll
    for (int w = 0; w < W; w++) {
      share[w] = products[w * THREADS + thread];
      share[channels + w] = sums[w * THREADS + thread];
    }
  }
}

// sum a (b - q) and sum a; q is `centre`, or 0
template <int W, int THREADS, class T>
__device__ __forceinline__ void sums_of_vectors(i64 rows, int channels, const T* __restrict__ a,
                                                const T* __restrict__ b, const T* __restrict__ centre, bool centred,
                                                double* __restrict__ shares, double* shared) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * W;
  double product[W] = {}, sum[W] = {};
  if (channel < channels) {
    Vector<T, W> q = {};
    if (centred) q = load<W>(centre + channel);
    const i64 step = (i64)gridDim.x * blockDim.y;
#pragma unroll 1
    for (i64 first = (i64)blockIdx.x * blockDim.y + threadIdx.y; first < rows; first += UNROLL * step) {
      Vector<T, W> u[UNROLL], v[UNROLL];
#pragma unroll
      for (int k = 0; k < UNROLL; k++) {
        const i64 row = first + k * step;
        u[k] = row < rows ? load<W>(a + row * channels + channel) : Vector<T, W>{};  // 0 adds nothing
        v[k] = row < rows ? load<W>(b + row * channels + channel) : q;
      }
#pragma unroll
      for (int w = 0; w < W; w++) {
        T products = 0, sums = 0;
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
          sums += u[k].at[w];
          products += u[k].at[w] * (v[k].at[w] - q.at[w]);
        }
        product[w] += products;
        sum[w] += sums;
      }
    }
  }
  write_shares<W, THREADS>(product, sum, channels, channel, shares, shared);
}

template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS, 3)
    channel_sums(i64 rows, int channels, int width, const T* a, const T* b, const T* centre, bool centred,
                 double* shares) {
  __shared__ double shared[2 * WIDEST<T> * THREADS];
  if (width == 1) {
    sums_of_vectors<1, THREADS>(rows, channels, a, b, centre, centred, shares, shared);
  } else {
    sums_of_vectors<WIDEST<T>, THREADS>(rows, channels, a, b, centre, centred, shares, shared);
  }
}

constexpr int PILOT_ROWS = 16;

// sum (x - p)² and sum (x - p), p the pilot: the mean of the first rows, so that x is read once and little cancels when
// the variance is made of both. Every block computes the same pilot; the first ones write it.
template <int W, int THREADS, class T>
__device__ __forceinline__ void moments_of_vectors(i64 rows, int channels, const T* __restrict__ x,
                                                   T* __restrict__ pilot, double* __restrict__ shares,
                                                   double* shared) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * W;
  double square[W] = {}, sum[W] = {};
  if (channel < channels) {
    const int count = (int)min((i64)PILOT_ROWS, rows);
    Vector<T, W> p = {};
    for (int row = 0; row < count; row++) {
      const Vector<T, W> value = load<W>(x + (i64)row * channels + channel);
#pragma unroll
      for (int w = 0; w < W; w++) p.at[w] += value.at[w];
    }
#pragma unroll
    for (int w = 0; w < W; w++) p.at[w] /= (T)count;
    if (blockIdx.x == 0 && threadIdx.y == 0) store<W>(pilot + channel, p);

    const i64 step = (i64)gridDim.x * blockDim.y;
#pragma unroll 1
    for (i64 first = (i64)blockIdx.x * blockDim.y + threadIdx.y; first < rows; first += UNROLL * step) {
      Vector<T, W> value[UNROLL];
#pragma unroll
      for (int k = 0; k < UNROLL; k++) {
        const i64 row = first + k * step;
        value[k] = row < rows ? load<W>(x + row * channels + channel) : p;  // p - p = 0 adds nothing
      }
#pragma unroll
      for (int w = 0; w < W; w++) {
        T squares = 0, differences = 0;
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
          const T difference = value[k].at[w] - p.at[w];
          differences += difference;
          squares += difference * difference;
        }
        square[w] += squares;
        sum[w] += differences;
      }
    }
  }
  write_shares<W, THREADS>(square, sum, channels, channel, shares, shared);
}

template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS, 3)
    channel_moments(i64 rows, int channels, int width, const T* x, T* pilot, double* shares) {
  __shared__ double shared[2 * WIDEST<T> * THREADS];
  if (width == 1) {
    moments_of_vectors<1, THREADS>(rows, channels, x, pilot, shares, shared);
  } else {
    moments_of_vectors<WIDEST<T>, THREADS>(rows, channels, x, pilot, shares, shared);
  }
}

struct Sums {
  double product, sum;
};

// The sums of one channel, all shares together, for the first of its threads, threadIdx.y = 0; others get a part.
// Takes shared memory of a Sums for each thread.
__device__ __forceinline__ Sums finished(int shares, int channels, const double* __restrict__ share, int channel) {
  REFNET_DYNAMIC_SHARED(Sums, parts);
  Sums total = {0, 0};
  if (channel < channels) {
    for (int k = threadIdx.y; k < shares; k += blockDim.y) {
      const double* here = share + (i64)k * 2 * channels + channel;
      total.product += here[0];
      total.sum += here[channels];
    }
  }
  parts[threadIdx.y * blockDim.x + threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y == 0) {
    for (int k = 1; k < (int)blockDim.y; k++) {
      const Sums part = parts[k * blockDim.x + threadIdx.x];
      total.product += part.product;
      total.sum += part.sum;
    }
  }
  return total;
}

// Both sums as they are: the gradients of an affine map's constants.
template <class T>
__global__ void finish_sums(int shares, int channels, const double* share, T* product, T* sum) {
  const int channel = blockIdx.x * blockDim.x + threadIdx.x;
  const Sums total = finished(shares, channels, share, channel);
  if (threadIdx.y > 0 || channel >= channels) return;
  product[channel] = (T)total.product;
  sum[channel] = (T)total.sum;
}

// The mean and the variance from the moments about the pilot (Chan, Golub & LeVeque 1983, eq. 1.7), and batch
// normalisation as an affine map.
template <class T>
__global__ void finish_moments(int shares, int channels, const double* share, double rows, double epsilon,
                               const T* gamma, const T* beta, const T* pilot, T* mean, T* variance, T* scale,
                               T* shift) {
  const int channel = blockIdx.x * blockDim.x + threadIdx.x;
  const Sums total = finished(shares, channels, share, channel);
  if (threadIdx.y > 0 || channel >= channels) return;
  const double off = total.sum / rows, square = total.product / rows - off * off;
  const double middle = (double)pilot[channel] + off, spread = square < 0 ? 0 : square;  // not max: NaN stays
  const double rate = (double)gamma[channel] / sqrt(spread + epsilon);
  mean[channel] = (T)middle;
  variance[channel] = (T)spread;
  scale[channel] = (T)rate;
  shift[channel] = (T)((double)beta[channel] - rate * middle);
}

// The gradients of gamma and beta, and with them the constants of grad_x = scale g + rate x + shift.
template <class T>
__global__ void finish_gradients(int shares, int channels, const double* share, double rows, double epsilon, const T* gamma,
                     const T* mean, const T* variance, T* grad_gamma, T* grad_beta, T* scale, T* rate, T* shift) {
  const int channel = blockIdx.x * blockDim.x + threadIdx.x;
  const Sums total = finished(shares, channels, share, channel);
  if (threadIdx.y > 0 || channel >= channels) return;
  const double normal = 1 / sqrt((double)variance[channel] + epsilon);
  const double of_gamma = total.product * normal, of_beta = total.sum;
  const double of_g = (double)gamma[channel] * normal, of_x = -of_g * normal * of_gamma / rows;
  grad_gamma[channel] = (T)of_gamma;
  grad_beta[channel] = (T)of_beta;
  scale[channel] = (T)of_g;
  rate[channel] = (T)of_x;
  shift[channel] = (T)(-of_g * of_beta / rows - of_x * (double)mean[channel]);
}

}  // namespace refnet
