// Matching of boxes with objects, refnet/ops/matching.py: a thread a box, the objects of its image in shared memory. No
// array holds all pairs. Compiled without contraction: each product and sum rounds as in NumPy.
#include "common.cuh"

constexpr int kBoxes = 128;   // of a block, a thread each
constexpr int kObjects = 64;  // of an image that are in shared memory at a time

template <class T> struct BitsOf;
template <> struct BitsOf<float> { using Type = u32; };
template <> struct BitsOf<double> { using Type = u64; };

// The bits of an IoU that is above 0: integers that ascend with it, so that the largest is found by atomicMax.
template <class T>
__device__ __forceinline__ typename BitsOf<T>::Type bits_of(T iou) {
  typename BitsOf<T>::Type bits;
  memcpy(&bits, &iou, sizeof bits);
  return bits;
}

template <class T>
struct __align__(4 * sizeof(T)) Box {
  T x1, y1, x2, y2;

  __device__ __forceinline__ T area() const { return (x2 - x1) * (y2 - y1); }
};

template <class T>
__device__ __forceinline__ Box<T> load(const T* corner) {
  return {corner[0], corner[1], corner[2], corner[3]};
}

// 0 where the union has no area, or where a coordinate isn't a number: its area isn't one then, nor is the union.
template <class T>
__device__ __forceinline__ T iou(const Box<T>& a, const Box<T>& b, T area_a, T area_b) {
  const T width = min(a.x2, b.x2) - max(a.x1, b.x1), height = min(a.y2, b.y2) - max(a.y1, b.y1);
  const T common = max(width, T(0)) * max(height, T(0)), joint = area_a + area_b - common;
  return common > 0 && joint > 0 ? common / joint : T(0);
}

// best[b] = the largest IoU of box b with an object of its image; object[b] = the first that gives it.
// highest[g] = the bits of the largest IoU of object g with a box, 0 before; written only if it is `asked` for.
//
// Most warps meet few of the objects, so that their maxima are seldom sought.
//
// grid: (blocks of boxes, images). boxes of an image begin `stride` numbers behind those of the image before, or are the
// same for all.
template <class T>
__global__ void __launch_bounds__(kBoxes)
best_objects(int rows, int objects, i64 stride, const T* __restrict__ boxes, const T* __restrict__ truth,
             T* __restrict__ best, int* __restrict__ object, bool asked,
             typename BitsOf<T>::Type* __restrict__ highest) {
  using Bits = typename BitsOf<T>::Type;
  __shared__ Box<T> others[kObjects];
  __shared__ T areas[kObjects];
  __shared__ Bits tops[kObjects];
  const int thread = threadIdx.x, row = blockIdx.x * kBoxes + thread;
  const i64 image = blockIdx.y;
  boxes += image * stride, truth += image * objects * 4, highest += image * objects;
  const Box<T> own = row < rows ? load(boxes + 4 * (i64)row) : Box<T>{0, 0, 0, 0};  // overlaps nothing
  const T own_area = own.area();

  T largest = 0;
  int at = 0;
  for (int start = 0; start < objects; start += kObjects) {
    const int count = min(objects - start, kObjects);
    __syncthreads();
    if (thread < count) {
      others[thread] = load(truth + 4 * (i64)(start + thread));
      areas[thread] = others[thread].area();
      tops[thread] = 0;
    }
    __syncthreads();
    for (int g = 0; g < count; g++) {
      T overlap = iou(others[g], own, areas[g], own_area);
      if (overlap > largest) largest = overlap, at = start + g;
      if (!asked || !__any_sync(~0u, overlap > 0)) continue;
      for (int step = 16; step; step /= 2) overlap = max(overlap, __shfl_xor_sync(~0u, overlap, step));
      if (thread % 32 == 0) atomicMax(&tops[g], bits_of(overlap));
    }
    if (!asked) continue;
    __syncthreads();
    if (thread < count && tops[thread]) atomicMax(&highest[start + thread], tops[thread]);
  }
  if (row >= rows) return;
  best[image * rows + row] = largest;
  object[image * rows + row] = at;
}

// forcing[b] = the last object whose highest IoU is that with box b, -1 if there is none. Or, if only the first box counts,
// first[g] = the first box that has the highest IoU of object g, `rows` before; forcing[b] is -1 then.
//
// An object can only belong to boxes whose own best is as high, so few IoUs are computed again.
template <class T>
__global__ void __launch_bounds__(kBoxes)
best_boxes(int rows, int objects, i64 stride, const T* __restrict__ boxes, const T* __restrict__ truth,
           const T* __restrict__ best, const typename BitsOf<T>::Type* __restrict__ highest, bool only_first,
           int* __restrict__ first, int* __restrict__ forcing) {
  using Bits = typename BitsOf<T>::Type;
  const int row = blockIdx.x * kBoxes + threadIdx.x;
  if (row >= rows) return;
  const i64 image = blockIdx.y;
  boxes += image * stride, truth += image * objects * 4, highest += image * objects, first += image * objects;
  const Box<T> own = load(boxes + 4 * (i64)row);
  const Bits bar = bits_of(best[image * rows + row]);
  int forced_by = -1;
  for (int g = 0; g < objects; g++) {
    const Bits top = highest[g];
    if (top == 0 || top > bar) continue;
    const Box<T> other = load(truth + 4 * (i64)g);
    if (bits_of(iou(other, own, other.area(), own.area())) != top) continue;
    if (only_first)
      atomicMin(&first[g], row);
    else
      forced_by = g;
  }
  forcing[image * rows + row] = forced_by;
}

// forcing[first[g]] = g, the last of several objects.
__global__ void force_first(int rows, int objects, const int* __restrict__ first, int* __restrict__ forcing) {
  const int g = blockIdx.x * blockDim.x + threadIdx.x;
  if (g >= objects) return;
  const i64 image = blockIdx.y;
  const int row = first[image * objects + g];
  if (row < rows) atomicMax(&forcing[image * rows + row], g);
}
