"""Users' own .cu files: from a description of their parameters to a checked kernel."""

import numpy as np
import pytest

from refnet import ops
from refnet.errors import ArgumentError
from refnet.kernels.emulator import available
from refnet.testing import KernelMismatch, check_kernel
from refnet.testing.cuda_source import cuda_kernel, split

CONVOLUTION = """
template <typename T>
__global__ void conv(const T* x, const T* w, T* y, int N, int H, int W, int C, int kh, int kw, int O, int Ho, int Wo,
                     int sy, int sx, int top, int left, int dy, int dx, int groups) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= N * Ho * Wo * O) return;
  int o = t % O, j = t / O % Wo, i = t / O / Wo % Ho, n = t / O / Wo / Ho;
  int cg = C / groups, first = o / (O / groups) * cg;
  T sum = 0;
  for (int a = 0; a < kh; a++)
    for (int b = 0; b < kw; b++) {
      int row = i * sy + a * dy - top, column = j * sx + b * dx - left;
      if (row < 0 || row >= H || column < 0 || column >= W) continue;
      for (int c = 0; c < cg; c++)
        sum += x[((n * H + row) * W + column) * C + first + c] * w[((a * kw + b) * cg + c) * O + o];
    }
  y[t] = sum;
}
"""
LAUNCH = {
    "entry": "conv<float>",
    "signature": "x, w, out, i32:N, i32:H, i32:W, i32:C, i32:kh, i32:kw, i32:O, i32:Ho, i32:Wo, i32:stride[0], "
    "i32:stride[1], i32:padding[0][0], i32:padding[1][0], i32:dilation[0], i32:dilation[1], i32:groups",
    "grid": "cdiv(out.size, 64)",
    "block": "64",
}
POOLING = """
__global__ void pool(const float* x, float* y, int* place, int count, int H, int W, int C, int Ho, int Wo, int2 k) {}
__global__ void relu(const float* x, float* y, int count) {
  int t = threadIdx.x;
  if (t < count) y[t] = !(x[t] < 0) ? x[t] : 0;
}
__global__ void total(const float* g, const float* x, float* scale, float* shift, int rows, int channels) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= rows * channels) return;
  atomicAdd(&scale[t % channels], g[t] * x[t]);
  atomicAdd(&shift[t % channels], g[t]);
}
"""
needs_compiler = pytest.mark.skipif(not available(), reason="the emulator needs g++")


def settings(**changes):
    return {"device": "emulated", "dtypes": ["float32"], "refusals": False, "max_examples": 5, **changes}


@needs_compiler
def test_a_convolution(tmp_path):
    source = tmp_path / "mine.cu"
    source.write_text(CONVOLUTION)
    report = check_kernel(ops.conv2d_forward, cuda_kernel(ops.conv2d_forward, source, **LAUNCH), **settings())
    assert report.kernel == "conv<float> of mine.cu"

    source.write_text(CONVOLUTION.replace("row >= H ||", "row > H ||"))
    with pytest.raises(KernelMismatch, match=r"mine.cu:"):
        check_kernel(ops.conv2d_forward, cuda_kernel(ops.conv2d_forward, source, **LAUNCH), **settings(shrink=False))


@needs_compiler
def test_several_results_and_sums_from_zero(tmp_path):
    source = tmp_path / "mine.cu"
    source.write_text(POOLING)
    kernel = cuda_kernel(
        ops.affine_grad_parameters,
        source,
        entry="total",
        signature="grad_output, x, zeros:out0, zeros:out1, i32:B, i32:C",
        grid="max(1, cdiv(x.size, 128))",
        block="128",
    )
    with pytest.raises(KernelMismatch, match=r"the same call gave two results|should be"):
        check_kernel(ops.affine_grad_parameters, kernel, **settings(max_examples=60))  # atomics: in any order
    few = settings(only=lambda x, **_: x.size < 2 * x.shape[-1])
    assert check_kernel(ops.affine_grad_parameters, kernel, **few).examples == 5


@needs_compiler
def test_what_is_not_written_shows(tmp_path):
    source = tmp_path / "mine.cu"
    source.write_text(POOLING)
    kernel = cuda_kernel(ops.relu_forward, source, entry="relu", signature="x, out, i32:out.size", grid="1", block="32")
    with pytest.raises(KernelMismatch, match=r"never written"):
        check_kernel(ops.relu_forward, kernel, **settings(shrink=False))


def test_what_a_description_must_be(tmp_path):
    with pytest.raises(ArgumentError, match=r"found no file nowhere.cu"):
        cuda_kernel(ops.relu_forward, "nowhere.cu", entry="f", signature="x", grid="1", block="1")
    source = tmp_path / "mine.cu"
    source.write_text(POOLING)
    for changes, words in (
        ({"signature": "x, y"}, r"signature: expected an array \(x, out, out0\).*got 'y'"),
        ({"signature": "x, i16:3"}, "got 'i16:3'"),
        ({"grid": "1, 1, 1, 1"}, "one to three extents"),
    ):
        launch = {"entry": "relu", "signature": "x", "grid": "1", "block": "1", **changes}
        with pytest.raises(ArgumentError, match=words):
            cuda_kernel(ops.relu_forward, source, **launch)(np.ones(3, np.float32))


def test_commas_within_brackets_stay():
    assert split("x, i32:max(N, 2) , f32:stride[min(0, 1)]") == ["x", "i32:max(N, 2)", "f32:stride[min(0, 1)]"]
