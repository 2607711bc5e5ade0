// Max pooling, channels last: a thread for each pixel of the result and each vector of neighbouring channels.
#include "vector.cuh"

namespace refnet {

// Sizes in pixels; `top` and `left` are the padding there. The padding below and to the right only adds windows.
struct Pooling {
  int channels, height, width, out_height, out_width;
  int kernel_height, kernel_width, stride_y, stride_x, top, left;
};

// A pixel of a batch of images of height x width.
struct Pixel {
  int image, y, x;
};

__device__ __forceinline__ Pixel pixel_of(int index, int height, int width) {
  const int row = index / width;
  return {row / height, row % height, index - row * width};
}

template <int W, class T>
__device__ __forceinline__ void max_of_windows(const Pooling& pooling, int pixels, const T* __restrict__ x,
                                               T* __restrict__ y, int* __restrict__ place) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * W;
  const int index = blockIdx.x * blockDim.y + threadIdx.y;
  if (channel >= pooling.channels || index >= pixels) return;
  const Pixel at = pixel_of(index, pooling.out_height, pooling.out_width);
  const int top = at.y * pooling.stride_y - pooling.top, left = at.x * pooling.stride_x - pooling.left;
  const T* image = x + (i64)at.image * pooling.height * pooling.width * pooling.channels + channel;

  Vector<T, W> best;
  Vector<int, W> first;
#pragma unroll
  for (int w = 0; w < W; w++) {
    best.at[w] = T(-1) / T(0);  // minus infinity: NVRTC has no INFINITY
    first.at[w] = 0;  // so an image's own minus infinity is never first behind padding
  }
  for (int a = max(0, -top); a < min(pooling.kernel_height, pooling.height - top); a++) {
    const T* row = image + (i64)(top + a) * pooling.width * pooling.channels;
    for (int b = max(0, -left); b < min(pooling.kernel_width, pooling.width - left); b++) {
      const Vector<T, W> value = load<W>(row + (i64)(left + b) * pooling.channels);
#pragma unroll
      for (int w = 0; w < W; w++) {
        // the first NaN is the maximum, the first of equals else
        if (!(value.at[w] <= best.at[w]) && best.at[w] == best.at[w]) {
          best.at[w] = value.at[w];
          first.at[w] = a * pooling.kernel_width + b;
        }
      }
    }
  }
  const i64 to = (i64)index * pooling.channels + channel;
  store<W>(y + to, best);
  store<W>(place + to, first);
}

template <class T>
__global__ void max_pool_forward(Pooling pooling, int pixels, int width, const T* x, T* y, int* place) {
  if (width == 1) {
    max_of_windows<1>(pooling, pixels, x, y, place);
  } else {
    max_of_windows<WIDEST<T>>(pooling, pixels, x, y, place);
  }
}

// The first window, of a row or a column, that holds the pixel `at` behind the padding.
__device__ __forceinline__ int first_window(int at, int kernel, int stride) {
  return at < kernel ? 0 : (at - kernel) / stride + 1;
}

// Every pixel gathers from the windows that hold it, from the last to the first: the order in which the specification
// adds, tap by tap. A product rather than a choice, as there: what isn't finite reaches the whole window.
template <int W, class T>
__device__ __forceinline__ void gather_from_windows(const Pooling& pooling, int pixels, const T* __restrict__ grad_y,
                                                    const int* __restrict__ place, T* __restrict__ grad_x) {
  const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * W;
  const int index = blockIdx.x * blockDim.y + threadIdx.y;
  if (channel >= pooling.channels || index >= pixels) return;
  const Pixel at = pixel_of(index, pooling.height, pooling.width);
  const int y = at.y + pooling.top, x = at.x + pooling.left;
  const int top = first_window(y, pooling.kernel_height, pooling.stride_y);
  const int left = first_window(x, pooling.kernel_width, pooling.stride_x);
  const int bottom = min(y / pooling.stride_y, pooling.out_height - 1);
  const int right = min(x / pooling.stride_x, pooling.out_width - 1);
  const i64 image = (i64)at.image * pooling.out_height;

  Vector<T, W> sum = {};
  for (int i = bottom; i >= top; i--) {
    for (int j = right; j >= left; j--) {
      const i64 from = ((image + i) * pooling.out_width + j) * pooling.channels + channel;
      const int tap = (y - i * pooling.stride_y) * pooling.kernel_width + x - j * pooling.stride_x;
      const Vector<T, W> grad = load<W>(grad_y + from);
      const Vector<int, W> chosen = load<W>(place + from);
#pragma unroll
      for (int w = 0; w < W; w++) sum.at[w] += grad.at[w] * (chosen.at[w] == tap ? T(1) : T(0));
    }
  }
  store<W>(grad_x + (i64)index * pooling.channels + channel, sum);
}

template <class T>
__global__ void max_pool_grad(Pooling pooling, int pixels, int width, const T* grad_y, const int* place, T* grad_x) {
  if (width == 1) {
    gather_from_windows<1>(pooling, pixels, grad_y, place, grad_x);
  } else {
    gather_from_windows<WIDEST<T>>(pooling, pixels, grad_y, place, grad_x);
  }
}

}  // namespace refnet
