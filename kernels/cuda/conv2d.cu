// Convolution of channels-last images as a matrix product whose left operand is gathered while it is loaded
// (implicit GEMM: Chetlur et al. 2014, section 3).
//
//   correlate   rows: pixels of the result; columns: its channels; reduction: taps and channels of the source.
//               The forward pass gathers x by output pixel. The gradient to the input gathers grad_output by input
//               pixel: pixel i reads output j through tap a when i + p = s j + d a, so the pixels of one residue of
//               i mod s see every (s / gcd(s, d))-th tap, and among these it is a correlation of stride 1 with the
//               taps in reverse order. A Walk says either; nothing behind it knows which pass it is.
//   outer       rows: taps and channels of x; columns: channels of grad_output; reduction: pixels of grad_output.
//
// Both run one pipeline: copies of the next STAGES - 1 slices of the reduction are under way while an Atom (what
// multiplies: FFMA, or tensor cores by mma.sync or, on Hopper, wgmma) works on the present one. Loaders hold their
// places as digits that are moved on with carries, so no loop divides. A reduction may be split among blocks: every part
// then writes its sums to a workspace, and add_splits adds them in their order.
#include "vector.cuh"

using namespace refnet;

// ---- the convolution --------------------------------------------------------------------------------------------

// One spatial axis. `period` is stride / gcd(stride, dilation).
struct Axis {
  int input, output, taps, stride, padding, dilation, period;
};

// Channels and outputs are those of one group.
struct Convolution {
  Axis y, x;
  int images, channels, outputs, groups;
};

// How one launch goes about it.
struct Task {
  int backward;  // correlate: 1 for the gradient to the input
  int splits;    // parts of the reduction; more than 1: the result is a workspace, and has no epilogue
  int slices;    // of the reduction, in each part
  int columns;   // of the packed weights, per group: the result's channels, rounded up to whole 16 bytes
  int epilogue;  // bits of Epilogue
};

// The taps a, a + q, a + 2 q... of an axis, q = period, are those that one residue of the gradient to the input sees. It
// meets them in falling order, and so they lie in weights that are packed for it: class a after class a - 1.
struct TapClass {
  int count, start;

  __device__ __forceinline__ TapClass(const Axis& axis, int first) {
    const int each = axis.taps / axis.period, more = axis.taps - each * axis.period;
    count = each + (first < more);
    start = first * each + min(first, more);
  }
};

// Along one axis: position i of the result lies at pixel first + step i, and sees through its m-th tap the source's
// pixel origin + stride i + dilation m.
struct Walk {
  int count, first, step, size, source, stride, origin, dilation, taps, start;
};

__device__ __forceinline__ Walk forward_walk(const Axis& axis) {
  return {axis.output, 0, 1, axis.output, axis.input, axis.stride, -axis.padding, axis.dilation, axis.taps, 0};
}

// The walk of the pixels residue, residue + stride... of the gradient to the input.
__device__ __forceinline__ Walk backward_walk(const Axis& axis, int residue) {
  const int s = axis.stride, d = axis.dilation, q = axis.period;
  Walk walk = {(axis.input - residue + s - 1) / s, residue, s, axis.input, axis.output, 1, 0, d * q / s, 0, 0};
  int first = 0;
  while (first < q && (residue + axis.padding - d * first) % s != 0) first++;
  if (first < min(q, axis.taps)) {
    const TapClass seen(axis, first);
    walk.taps = seen.count;
    walk.start = seen.start;
    walk.origin = (residue + axis.padding - d * (first + q * (seen.count - 1))) / s;
  }
  return walk;
}

// A number in mixed radix, without the highest radix: (tap row, tap column, channel) or (image, row, column).
struct Digits {
  int high, middle, low;

  Digits() = default;

  __device__ __forceinline__ Digits(int number, int middle_radix, int low_radix) {
    const int rest = number / low_radix;
    low = number - rest * low_radix;
    high = rest / middle_radix;
    middle = rest - high * middle_radix;
  }

  __device__ __forceinline__ void add(const Digits& other, int middle_radix, int low_radix) {
    low += other.low;
    middle += other.middle;
    high += other.high;
    if (low >= low_radix) low -= low_radix, middle++;
    if (middle >= middle_radix) middle -= middle_radix, high++;
  }
};

// ---- slices of the operands in shared memory -----------------------------------------------------------------------

// COUNT lines of LENGTH elements, with PAD more between them so that a warp's reads fall into different banks.
template <class Element, int COUNT, int LENGTH, int PAD>
struct Lines {
  using T = Element;
  static constexpr int LINES = COUNT, WIDTH = LENGTH, PITCH = LENGTH + PAD, SIZE = COUNT * PITCH;
  static __device__ __forceinline__ int at(int line, int position) { return line * PITCH + position; }
};

// COUNT lines of 128 bytes without a gap, whose chunks are exchanged as swizzled_tile says.
template <class Element, int COUNT>
struct SwizzledLines {
  using T = Element;
  static constexpr int LINES = COUNT, WIDTH = 128 / sizeof(T), SIZE = COUNT * WIDTH, CHUNK = 16 / sizeof(T);
  static __device__ __forceinline__ int at(int line, int position) {
    return line * WIDTH + (position / CHUNK ^ line % 8) * CHUNK + position % CHUNK;
  }
};

// What each thread of a block copies of a slice: one position of every PASS-th line, VECTOR elements at a time.
template <class Layout, int VECTOR, int THREADS>
struct Share {
  using T = typename Layout::T;
  static constexpr int CHUNKS = Layout::WIDTH / VECTOR, PASS = THREADS / CHUNKS, COUNT = Layout::LINES / PASS;
  static_assert(THREADS % CHUNKS == 0 && Layout::LINES % PASS == 0, "threads share a slice evenly");
  static __device__ __forceinline__ int line(int i) { return (int)threadIdx.x / CHUNKS + i * PASS; }
  static __device__ __forceinline__ int position() { return (int)threadIdx.x % CHUNKS * VECTOR; }
  static __device__ __forceinline__ void copy(T* slice, int i, const T* from, bool present) {
    copy_async<VECTOR * sizeof(T)>(slice + Layout::at(line(i), position()), from, present);
  }
};

// A line for each pixel of the result: the taps and channels that it sees.
template <class Layout, int VECTOR, int THREADS>
struct PatchLines {
  using Own = Share<Layout, VECTOR, THREADS>;
  using T = typename Layout::T;
  const T* image;
  const Walk &rows, &columns;  // in shared memory: looked up for each slice, they take no registers
  int channels, pixel_size;
  int pixel[Own::COUNT], y[Own::COUNT], x[Own::COUNT];
  Digits at, slice;

  __device__ __forceinline__ PatchLines(const T* image, const Walk& rows, const Walk& columns, int images,
                                        int channels, int groups, int first_pixel, int first_product)
      : image(image), rows(rows), columns(columns), channels(channels), pixel_size(groups * channels),
        at(first_product + Own::position(), columns.taps, channels), slice(Layout::WIDTH, columns.taps, channels) {
#pragma unroll
    for (int i = 0; i < Own::COUNT; i++) {
      const Digits place(first_pixel + Own::line(i), rows.count, columns.count);
      const bool exists = place.high < images;
      y[i] = exists ? place.middle * rows.stride + rows.origin : -(1 << 30);  // above every image: zeros
      x[i] = place.low * columns.stride + columns.origin;
      pixel[i] = exists ? (place.high * rows.source + y[i]) * columns.source + x[i] : 0;
    }
  }

  __device__ __forceinline__ void copy(T* to) {
    const int height = rows.source, width = columns.source, taps_across = columns.taps;
    const int down = at.high * rows.dilation, right = at.middle * columns.dilation, move = down * width + right;
    const bool any = at.high < rows.taps;
#pragma unroll
    for (int i = 0; i < Own::COUNT; i++) {
      const bool present = any && (u32)(y[i] + down) < (u32)height && (u32)(x[i] + right) < (u32)width;
      Own::copy(to, i, present ? image + (i64)(pixel[i] + move) * pixel_size + at.low : image, present);
    }
    at.add(slice, taps_across, channels);
  }
};

// The lines of a matrix: rows of packed weights, in PatchLines' order, or the pixels of the gradient. A thread copies
// several pieces of one line.
template <class Layout, int VECTOR, int THREADS>
struct MatrixLines {
  using T = typename Layout::T;
  static constexpr int SHARERS = THREADS / Layout::LINES, COUNT = Layout::WIDTH / VECTOR / SHARERS;
  static_assert(THREADS % Layout::LINES == 0 && Layout::WIDTH % (VECTOR * SHARERS) == 0, "threads share a line evenly");
  const T* from;
  int left, pitch, width;  // lines of the matrix from this thread's on

  static __device__ __forceinline__ int line() { return threadIdx.x / SHARERS; }
  static __device__ __forceinline__ int position(int i) { return threadIdx.x % SHARERS * VECTOR + i * SHARERS * VECTOR; }

  __device__ __forceinline__ MatrixLines(const T* matrix, int lines, int pitch, int width, int first_line,
                                         int first_column)
      : from(matrix + (i64)(first_line + line()) * pitch + first_column + position(0)),
        left(lines - first_line - line()), pitch(pitch), width(width - first_column - position(0)) {}

  __device__ __forceinline__ void copy(T* to) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int ahead = i * SHARERS * VECTOR;
      copy_async<VECTOR * sizeof(T)>(to + Layout::at(line(), position(i)), from + ahead, left > 0 && ahead < width);
    }
    left -= Layout::LINES;
    from += (i64)Layout::LINES * pitch;
  }
};

// A line for each column of the result: weights that are packed so that a column's products, all `pitch` of them, lie
// side by side.
template <class Layout, int VECTOR, int THREADS>
struct ColumnLines {
  using Own = Share<Layout, VECTOR, THREADS>;
  using T = typename Layout::T;
  const T* from;
  int left, pitch, columns;  // products and columns from this thread's first on

  __device__ __forceinline__ ColumnLines(const T* weights, int products, int pitch, int columns, int first_product,
                                         int first_column)
      : from(weights + (i64)(first_column + Own::line(0)) * pitch + first_product + Own::position()),
        left(products - first_product - Own::position()), pitch(pitch),
        columns(columns - first_column - Own::line(0)) {}

  __device__ __forceinline__ void copy(T* to) {
#pragma unroll
    for (int i = 0; i < Own::COUNT; i++) {
      const int ahead = i * Own::PASS;
      Own::copy(to, i, from + (i64)ahead * pitch, left > 0 && ahead < columns);
    }
    left -= Layout::WIDTH;
    from += Layout::WIDTH;
  }
};

// A line for each pixel of the gradient: what this pixel sees through a tap, for some taps and channels.
template <class Layout, int VECTOR, int THREADS>
struct TapLines {
  using Own = Share<Layout, VECTOR, THREADS>;
  using T = typename Layout::T;
  const T* image;
  Walk rows, columns;
  int images, pixel_size, down, right;
  bool inside;
  Digits at[Own::COUNT], slice;

  __device__ __forceinline__ TapLines(const T* image, const Walk& rows, const Walk& columns, int images, int channels,
                                      int groups, int first_product, int first_pixel)
      : image(image), rows(rows), columns(columns), images(images), pixel_size(groups * channels),
        slice(Layout::LINES, rows.count, columns.count) {
    const Digits tap(first_product + Own::position(), columns.taps, channels);
    inside = tap.high < rows.taps;
    down = tap.high * rows.dilation + rows.origin;
    right = tap.middle * columns.dilation + columns.origin;
    this->image += inside ? tap.low : 0;
#pragma unroll
    for (int i = 0; i < Own::COUNT; i++) at[i] = Digits(first_pixel + Own::line(i), rows.count, columns.count);
  }

  __device__ __forceinline__ void copy(T* to) {
#pragma unroll
    for (int i = 0; i < Own::COUNT; i++) {
      const int y = at[i].middle * rows.stride + down, x = at[i].low * columns.stride + right;
      const bool present = inside && at[i].high < images && (u32)y < (u32)rows.source && (u32)x < (u32)columns.source;
      const int pixel = (at[i].high * rows.source + y) * columns.source + x;
      Own::copy(to, i, present ? image + (i64)pixel * pixel_size : image, present);
      at[i].add(slice, rows.count, columns.count);
    }
  }
};

// ---- atoms: what multiplies ----------------------------------------------------------------------------------------

// Which index runs along a line of an operand's slice: the reduction's, or that of the result (row or column).
enum Major { ALONG_REDUCTION, ALONG_RESULT };

// Threads on a multiprocessor: each may have 128 of its 65536 registers. 256 on Turing, which copies through registers,
// and on the datacentre's Blackwell, where the assembler needs some more and would spill them.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 800 || __CUDA_ARCH__ / 100 == 10)
static constexpr int RESIDENT = 256;
#else
static constexpr int RESIDENT = 512;
#endif

// How an Atom goes about its slices. One that is ASYNCHRONOUS (wgmma) only begins to multiply: it must finish before the
// slices are overwritten, and its right operand has a line for each column, where the others' has one for each product.
enum Manner { AT_ONCE, ASYNCHRONOUS };

// Plain arithmetic: a thread has TM x TN sums, a warp of 4 x 8 threads a tile of 4 TM x 8 TN. The left operand's slice
// may lie either way; the right one's lines run along columns.
template <class T, Major MAJOR, int BM, int BN, int BK, int TM, int TN, int A_PAD, int B_PAD>
struct Simt {
  static constexpr Manner MANNER = AT_ONCE;
  using Operand = T;
  using Value = T;
  static constexpr int ROWS = BM, COLUMNS = BN, DEPTH = BK, CHUNK = 16 / sizeof(T), RUN = CHUNK;
  static constexpr int DOWN = BM / (4 * TM), ACROSS = BN / (8 * TN), THREADS = 32 * DOWN * ACROSS;
  static constexpr int BLOCKS = RESIDENT / THREADS;
  using A = Lines<T, (MAJOR == ALONG_REDUCTION ? BM : BK), (MAJOR == ALONG_REDUCTION ? BK : BM), A_PAD>;
  using B = Lines<T, BK, BN, B_PAD>;
  using Chunk = Vector<T, CHUNK>;
  T sums[TM][TN];

  __device__ __forceinline__ Simt() {
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
      for (int j = 0; j < TN; j++) sums[i][j] = 0;
  }

  // Threads of a warp read rows (or chunks of rows) next to each other, and the same for columns.
  static __device__ __forceinline__ int row(int i) {
    const int warp = threadIdx.x / 32 % DOWN, thread = threadIdx.x % 32 / 8;
    if (MAJOR == ALONG_REDUCTION) return warp * 4 * TM + i * 4 + thread;
    return warp * 4 * TM + (i / CHUNK * 4 + thread) * CHUNK + i % CHUNK;
  }
  static __device__ __forceinline__ int column(int j) {
    const int warp = threadIdx.x / 32 / DOWN, thread = threadIdx.x % 8;
    return warp * 8 * TN + (j / CHUNK * 8 + thread) * CHUNK + j % CHUNK;
  }

  __device__ __forceinline__ void multiply(const T* a, const T* b) {
#pragma unroll
    for (int k = 0; k < BK; k += CHUNK) {
      Chunk left[TM];  // each of one row and CHUNK products, or of CHUNK rows and one product
#pragma unroll
      for (int i = 0; i < TM; i++) {
        const int at = MAJOR == ALONG_REDUCTION ? A::at(row(i), k) : A::at(k + i % CHUNK, row(i / CHUNK * CHUNK));
        left[i] = *reinterpret_cast<const Chunk*>(a + at);
      }
#pragma unroll
      for (int step = 0; step < CHUNK; step++) {
        Chunk right[TN / CHUNK];
#pragma unroll
        for (int j = 0; j < TN / CHUNK; j++)
          right[j] = *reinterpret_cast<const Chunk*>(b + B::at(k + step, column(j * CHUNK)));
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) {
            const T x = MAJOR == ALONG_REDUCTION ? left[i].at[step] : left[i / CHUNK * CHUNK + step].at[i % CHUNK];
            sums[i][j] += x * right[j / CHUNK].at[j % CHUNK];
          }
      }
    }
  }

  // Call visit(row, column, values) for every RUN sums that lie side by side in a row.
  template <class Visit>
  __device__ __forceinline__ void visit_runs(Visit visit) {
#pragma unroll
    for (int j = 0; j < TN; j += RUN)
#pragma unroll
      for (int i = 0; i < TM; i++) visit(row(i), column(j), sums[i] + j);
  }
};

// What is common to the atoms whose warps multiply by mma.sync: a warp has a tile of WM x WN, in fragments of 16 x 8.
template <class T, Major MAJOR, int BM, int BN, int BK, int WM, int WN, int A_PAD, int B_PAD>
struct Fragments {
  static constexpr Manner MANNER = AT_ONCE;
  using Operand = T;
  using Value = float;
  static constexpr int ROWS = BM, COLUMNS = BN, DEPTH = BK, CHUNK = 16 / sizeof(T), RUN = 2;
  static constexpr int FM = WM / 16, FN = WN / 8, DOWN = BM / WM, THREADS = 32 * DOWN * (BN / WN);
  static constexpr int BLOCKS = RESIDENT / THREADS;
  using A = Lines<T, (MAJOR == ALONG_REDUCTION ? BM : BK), (MAJOR == ALONG_REDUCTION ? BK : BM), A_PAD>;
  using B = Lines<T, BK, BN, B_PAD>;
  float sums[FM][FN][4];

  __device__ __forceinline__ Fragments() {
#pragma unroll
    for (int i = 0; i < FM; i++)
#pragma unroll
      for (int j = 0; j < FN; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
  }

  static __device__ __forceinline__ int first_row() { return threadIdx.x / 32 % DOWN * WM; }
  static __device__ __forceinline__ int first_column() { return threadIdx.x / 32 / DOWN * WN; }

  template <class Visit>
  __device__ __forceinline__ void visit_runs(Visit visit) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < FN; j++)
#pragma unroll
      for (int i = 0; i < FM; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          visit(first_row() + i * 16 + half * 8 + lane / 4, first_column() + j * 8 + lane % 4 * 2, sums[i][j] + 2 * half);
  }
};

// Tensor cores on float32 operands, each rounded to TF32 on its way from shared memory.
template <Major MAJOR, int BM, int BN, int BK, int WM, int WN, int A_PAD, int B_PAD>
struct Tf32 : Fragments<float, MAJOR, BM, BN, BK, WM, WN, A_PAD, B_PAD> {
  using Base = Fragments<float, MAJOR, BM, BN, BK, WM, WN, A_PAD, B_PAD>;
  using A = typename Base::A;
  using B = typename Base::B;

  __device__ __forceinline__ void multiply(const float* a, const float* b) {
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
#pragma unroll
    for (int k = 0; k < BK; k += 8) {
      u32 left[Base::FM][4], right[Base::FN][2];
#pragma unroll
      for (int i = 0; i < Base::FM; i++) {
        const int row = Base::first_row() + 16 * i;
        if (MAJOR == ALONG_REDUCTION) {
          load_matrices(left[i], a + A::at(row + lane % 16, k + lane / 16 * 4));
        } else {
#pragma unroll
          for (int e = 0; e < 4; e++) left[i][e] = __float_as_uint(a[A::at(k + member + e / 2 * 4, row + group + e % 2 * 8)]);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) left[i][e] = to_tf32(__uint_as_float(left[i][e]));
      }
#pragma unroll
      for (int j = 0; j < Base::FN; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          right[j][e] = to_tf32(b[B::at(k + member + 4 * e, Base::first_column() + 8 * j + group)]);
#pragma unroll
      for (int i = 0; i < Base::FM; i++)
#pragma unroll
        for (int j = 0; j < Base::FN; j++) mma_m16n8k8_tf32(this->sums[i][j], left[i], right[j]);
    }
  }
};

// Tensor cores on bfloat16 operands.
template <Major MAJOR, int BM, int BN, int BK, int WM, int WN, int A_PAD, int B_PAD>
struct Bf16 : Fragments<u16, MAJOR, BM, BN, BK, WM, WN, A_PAD, B_PAD> {
  using Base = Fragments<u16, MAJOR, BM, BN, BK, WM, WN, A_PAD, B_PAD>;
  using A = typename Base::A;
  using B = typename Base::B;
  static_assert(Base::FN % 2 == 0, "two fragments of columns are loaded at once");

  __device__ __forceinline__ void multiply(const u16* a, const u16* b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
      u32 left[Base::FM][4], right[Base::FN][2];
#pragma unroll
      for (int i = 0; i < Base::FM; i++) {
        const int row = Base::first_row() + 16 * i;
        if (MAJOR == ALONG_REDUCTION)
          load_matrices(left[i], a + A::at(row + lane % 16, k + lane / 16 * 8));
        else
          load_matrices_transposed(left[i], a + A::at(k + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
      }
#pragma unroll
      for (int j = 0; j < Base::FN; j += 2) {
        u32 both[4];
        load_matrices_transposed(both, b + B::at(k + lane % 16, Base::first_column() + 8 * j + lane / 16 * 8));
#pragma unroll
        for (int e = 0; e < 4; e++) right[j + e / 2][e % 2] = both[e];
      }
#pragma unroll
      for (int i = 0; i < Base::FM; i++)
#pragma unroll
        for (int j = 0; j < Base::FN; j++) mma_m16n8k16_bf16(this->sums[i][j], left[i], right[j]);
    }
  }
};

// Hopper's tensor cores: a warpgroup multiplies 64 rows by all columns, both read from shared memory by the instruction
// itself, in slices of 128 bytes. It is for `correlate` alone: both operands of `outer` lie along the result, and of
// those wgmma takes bfloat16 but not TF32.
template <class T, int BM, int BN, int BK>
struct Wgmma {
  static constexpr Manner MANNER = ASYNCHRONOUS;
  using Operand = T;
  using Value = float;
  static constexpr int ROWS = BM, COLUMNS = BN, DEPTH = BK, CHUNK = 16 / sizeof(T), RUN = 2;
  static constexpr int THREADS = BM / 64 * 128, BLOCKS = RESIDENT / THREADS;
  using A = SwizzledLines<T, BM>;
  using B = SwizzledLines<T, BN>;
  static_assert(BM % 64 == 0 && BN == 128 && BK == A::WIDTH, "a warpgroup has 64 x 128 sums, a slice lines of 128 bytes");
  float sums[BN / 2];

  __device__ __forceinline__ Wgmma() {
#pragma unroll
    for (int i = 0; i < BN / 2; i++) sums[i] = 0;
  }

  __device__ __forceinline__ void multiply(const T* a, const T* b) {
    constexpr int STEPS = 4, STEP = 2;  // a product is 32 bytes deep
    const u64 left = swizzled_tile(a + threadIdx.x / 128 * 64 * A::WIDTH), right = swizzled_tile(b);
    wgmma_fence(sums);
#pragma unroll
    for (int k = 0; k < STEPS; k++)
      if constexpr (sizeof(T) == 2)
        wgmma_m64n128k16_bf16(sums, left + k * STEP, right + k * STEP);
      else
        wgmma_m64n128k8_tf32(sums, left + k * STEP, right + k * STEP);
    wgmma_commit();
  }

  __device__ __forceinline__ void finish() { wgmma_wait(sums); }

  template <class Visit>
  __device__ __forceinline__ void visit_runs(Visit visit) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < BN / 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) visit(row + half * 8, j * 8 + column, sums + 4 * j + 2 * half);
  }
};

// On float32 operands as they are: the left one is cut off to TF32, the right one was rounded when it was packed.
template <int BM, int BN, int BK>
using WgmmaTf32 = Wgmma<float, BM, BN, BK>;
template <int BM, int BN, int BK>
using WgmmaBf16 = Wgmma<u16, BM, BN, BK>;

// ---- the pipeline --------------------------------------------------------------------------------------------------

template <class Atom, int STAGES, class ALoader, class BLoader>
__device__ __forceinline__ void accumulate(Atom& atom, ALoader& a, BLoader& b, int slices) {
  using T = typename Atom::Operand;
  constexpr int SIZE = Atom::A::SIZE + Atom::B::SIZE;
  REFNET_DYNAMIC_SHARED(T, stages);
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) {
    if (stage < slices) {
      a.copy(stages + stage * SIZE);
      b.copy(stages + stage * SIZE + Atom::A::SIZE);
    }
    copy_commit();
  }
  int reading = 0, writing = STAGES - 1;
  for (int slice = 0; slice < slices; slice++) {
    copy_wait<STAGES - 2>();
    if constexpr (Atom::MANNER == ASYNCHRONOUS) {
      atom.finish();
      fence_proxy_async();
    }
    __syncthreads();  // the slice is there for all; and all are done with the one before, which is overwritten now
    if constexpr (Atom::MANNER == ASYNCHRONOUS)  // first, so that the copies are asked for while it multiplies
      atom.multiply(stages + reading * SIZE, stages + reading * SIZE + Atom::A::SIZE);
    if (slice + STAGES - 1 < slices) {
      a.copy(stages + writing * SIZE);
      b.copy(stages + writing * SIZE + Atom::A::SIZE);
    }
    copy_commit();  // an empty group where nothing is left to copy, so that the count of groups stays right
    if constexpr (Atom::MANNER == AT_ONCE)
      atom.multiply(stages + reading * SIZE, stages + reading * SIZE + Atom::A::SIZE);
    reading = reading + 1 == STAGES ? 0 : reading + 1;
    writing = writing + 1 == STAGES ? 0 : writing + 1;
  }
  copy_wait<0>();
  if constexpr (Atom::MANNER == ASYNCHRONOUS) atom.finish();
}

// What happens to a finished sum: times scale, plus shift, plus residual, and not below zero.
enum { SCALE = 1, SHIFT = 2, RESIDUAL = 4, RELU = 8 };

template <class T>
struct Epilogue {
  const T *scale, *shift, *residual;
  int steps;

  __device__ __forceinline__ T operator()(T value, i64 element, int channel) const {
    if (steps & SCALE) value *= scale[channel];
    if (steps & SHIFT) value += shift[channel];
    if (steps & RESIDUAL) value += residual[element];
    if (steps & RELU) value = value < 0 ? T(0) : value;  // a NaN stays one
    return value;
  }
};

// Write RUN values, of which those from column `width` on don't exist.
template <int RUN, class T>
__device__ __forceinline__ void write_run(T* y, i64 element, int channel, int column, int width, bool aligned,
                                          const T* values, const Epilogue<T>& epilogue) {
  Vector<T, RUN> run;
#pragma unroll
  for (int j = 0; j < RUN; j++)
    if (column + j < width) run.at[j] = epilogue(values[j], element + j, channel + j);
  if (aligned && column < width) {
    *reinterpret_cast<Vector<T, RUN>*>(y + element) = run;
  } else {
#pragma unroll
    for (int j = 0; j < RUN; j++)
      if (column + j < width) y[element + j] = run.at[j];
  }
}

// ---- kernels -------------------------------------------------------------------------------------------------------

// y, or a part of it, from an image and the packed weights: x and w, or grad_output and w with its two kinds of
// channels exchanged. Blocks: tiles along x, columns fastest, so that those that share rows run at the same time;
// groups along y; residues, and parts of the reduction, along z.
template <class Atom, int VECTOR, int STAGES>
__global__ void __launch_bounds__(Atom::THREADS, VECTOR > 1 && Atom::BLOCKS > 0 ? Atom::BLOCKS : 1)
    correlate(Convolution conv, Task task, const typename Atom::Operand* __restrict__ image,
              const typename Atom::Operand* __restrict__ weights, const typename Atom::Value* __restrict__ scale,
              const typename Atom::Value* __restrict__ shift, const typename Atom::Value* __restrict__ residual,
              typename Atom::Value* __restrict__ y) {
  using T = typename Atom::Value;
  const int channels = task.backward ? conv.outputs : conv.channels;
  const int width = task.backward ? conv.channels : conv.outputs;
  const int tiles = (width + Atom::COLUMNS - 1) / Atom::COLUMNS, group = blockIdx.y;
  const int part = blockIdx.z % task.splits, residue = blockIdx.z / task.splits;
  // one thread an axis finds out how it is walked; being looked up again at the end, it holds no registers meanwhile
  __shared__ Walk walks[2];
  if (threadIdx.x < 2) {
    const Axis axis = threadIdx.x ? conv.x : conv.y;
    const int across = min(conv.x.stride, conv.x.input), place = threadIdx.x ? residue % across : residue / across;
    walks[threadIdx.x] = task.backward ? backward_walk(axis, place) : forward_walk(axis);
  }
  __syncthreads();
  const int first_row = blockIdx.x / tiles * Atom::ROWS, first_column = blockIdx.x % tiles * Atom::COLUMNS;
  const int pixels = conv.images * walks[0].count * walks[1].count;
  if (first_row >= pixels) return;  // a residue of fewer pixels than the first

  Atom atom;
  const int products = walks[0].taps * walks[1].taps * channels, first_product = part * task.slices * Atom::DEPTH;
  const int slices = min(task.slices, (products - first_product + Atom::DEPTH - 1) / Atom::DEPTH);
  if (slices > 0) {
    const Walk &rows = walks[0], &columns = walks[1];
    const int first_line = (rows.start * conv.x.taps + rows.taps * columns.start) * channels;
    PatchLines<typename Atom::A, VECTOR, Atom::THREADS> a(image + group * channels, rows, columns, conv.images,
                                                          channels, conv.groups, first_row, first_product);
    if constexpr (Atom::MANNER == ASYNCHRONOUS) {
      const int pitch = conv.y.taps * conv.x.taps * channels;
      ColumnLines<typename Atom::B, Atom::CHUNK, Atom::THREADS> b(weights + (i64)group * task.columns * pitch + first_line,
                                                                  products, pitch, task.columns, first_product,
                                                                  first_column);
      accumulate<Atom, STAGES>(atom, a, b, slices);
    } else {
      const int pitch = conv.groups * task.columns;
      MatrixLines<typename Atom::B, Atom::CHUNK, Atom::THREADS> b(weights + (i64)first_line * pitch + group * task.columns,
                                                                  products, pitch, task.columns, first_product,
                                                                  first_column);
      accumulate<Atom, STAGES>(atom, a, b, slices);
    }
  }

  const Walk &rows = walks[0], &columns = walks[1];
  const bool direct = rows.step == 1 && columns.step == 1;
  const int pitch = conv.groups * width;
  const bool aligned = width % Atom::RUN == 0;
  const Epilogue<T> epilogue = {scale, shift, residual, task.epilogue};
  T* to = y + (i64)part * conv.images * rows.size * columns.size * pitch;
  atom.visit_runs([&](int i, int j, const T* values) {
    int pixel = first_row + i;
    if (pixel >= pixels) return;
    if (!direct) {
      const Digits place(pixel, rows.count, columns.count);
      pixel = (place.high * rows.size + rows.first + place.middle * rows.step) * columns.size + columns.first +
              place.low * columns.step;
    }
    const int column = first_column + j, channel = group * width + column;
    write_run<Atom::RUN>(to, (i64)pixel * pitch + channel, channel, column, width, aligned, values, epilogue);
  });
}

// The gradient to the weights, or parts of it. Blocks: tiles along x, groups along y, parts of the reduction along z.
template <class Atom, int VECTOR, int STAGES>
__global__ void __launch_bounds__(Atom::THREADS, VECTOR > 1 && Atom::BLOCKS > 0 ? Atom::BLOCKS : 1)
    outer(Convolution conv, Task task, const typename Atom::Operand* __restrict__ image,
          const typename Atom::Operand* __restrict__ gradient, typename Atom::Value* __restrict__ grad_weight) {
  using T = typename Atom::Value;
  const int tiles = (conv.outputs + Atom::COLUMNS - 1) / Atom::COLUMNS, group = blockIdx.y, part = blockIdx.z;
  const int first_row = blockIdx.x / tiles * Atom::ROWS, first_column = blockIdx.x % tiles * Atom::COLUMNS;
  const Walk rows = forward_walk(conv.y), columns = forward_walk(conv.x);
  const int pixels = conv.images * rows.count * columns.count, pitch = conv.groups * conv.outputs;
  const int first_pixel = part * task.slices * Atom::DEPTH;
  const int slices = min(task.slices, (pixels - first_pixel + Atom::DEPTH - 1) / Atom::DEPTH);

  Atom atom;
  if (slices > 0) {
    TapLines<typename Atom::A, VECTOR, Atom::THREADS> a(image + group * conv.channels, rows, columns, conv.images,
                                                        conv.channels, conv.groups, first_row, first_pixel);
    MatrixLines<typename Atom::B, VECTOR, Atom::THREADS> b(gradient + group * conv.outputs, pixels, pitch, conv.outputs,
                                                           first_pixel, first_column);
    accumulate<Atom, STAGES>(atom, a, b, slices);
  }

  const int height = rows.taps * columns.taps * conv.channels;
  const bool aligned = conv.outputs % Atom::RUN == 0;
  T* to = grad_weight + (i64)part * height * pitch;
  atom.visit_runs([&](int i, int j, const T* values) {
    const int row = first_row + i, column = first_column + j;
    if (row >= height) return;
    const int channel = group * conv.outputs + column;
    write_run<Atom::RUN>(to, (i64)row * pitch + channel, channel, column, conv.outputs, aligned, values,
                         Epilogue<T>{});
  });
}

// Groups of few channels (depth-wise: of one) would leave a tile nearly empty. A thread has one number of the result, and
// a warp 32 channels of one pixel, which lie side by side in all arrays. The weights are as they were given.
// Blocks of 8 warps: pixels along x, channels along y.
template <class T>
__global__ void __launch_bounds__(256)
    direct(Convolution conv, Task task, const T* __restrict__ image, const T* __restrict__ weights,
           const T* __restrict__ scale, const T* __restrict__ shift, const T* __restrict__ residual,
           T* __restrict__ y) {
  const bool backward = task.backward;
  const int each = backward ? conv.channels : conv.outputs, reduced = backward ? conv.outputs : conv.channels;
  const int height = backward ? conv.y.input : conv.y.output, width = backward ? conv.x.input : conv.x.output;
  const int source_height = backward ? conv.y.output : conv.y.input;
  const int source_width = backward ? conv.x.output : conv.x.input;
  const int pixel = blockIdx.x * 8 + threadIdx.x / 32, channel = blockIdx.y * 32 + threadIdx.x % 32;
  if (pixel >= conv.images * height * width || channel >= conv.groups * each) return;
  const Digits place(pixel, height, width);
  const int group = channel / each, pitch = conv.groups * conv.outputs;
  T sum = 0;
#pragma unroll 1
  for (int a = 0; a < conv.y.taps; a++) {
    int row = backward ? place.middle + conv.y.padding - a * conv.y.dilation
                       : place.middle * conv.y.stride - conv.y.padding + a * conv.y.dilation;
    if (row < 0 || (backward && row % conv.y.stride != 0)) continue;
    if (backward) row /= conv.y.stride;
    if (row >= source_height) continue;
#pragma unroll 1
    for (int b = 0; b < conv.x.taps; b++) {
      int column = backward ? place.low + conv.x.padding - b * conv.x.dilation
                            : place.low * conv.x.stride - conv.x.padding + b * conv.x.dilation;
      if (column < 0 || (backward && column % conv.x.stride != 0)) continue;
      if (backward) column /= conv.x.stride;
      if (column >= source_width) continue;
      const i64 seen = (i64)((place.high * source_height + row) * source_width + column);
      const T* from = image + (seen * conv.groups + group) * reduced;
      const int line = (a * conv.x.taps + b) * conv.channels;
      const T* w = backward ? weights + (line + channel - group * each) * pitch + group * reduced
                            : weights + line * pitch + channel;
      const int step = backward ? 1 : pitch;
#pragma unroll 4
      for (int k = 0; k < reduced; k++) sum += from[k] * w[k * step];
    }
  }
  const i64 element = (i64)pixel * conv.groups * each + channel;
  y[element] = Epilogue<T>{scale, shift, residual, task.epilogue}(sum, element, channel);
}

// The gradient to weights of groups of few channels, or parts of it: a lane has one output, the block's 8 warps every
// eighth of a part's pixels. Blocks: taps and channels along x, outputs along y, parts of task.slices pixels along z.
template <class T>
__global__ void __launch_bounds__(256)
    direct_outer(Convolution conv, Task task, const T* __restrict__ image, const T* __restrict__ gradient,
                 T* __restrict__ grad_weight) {
  __shared__ T sums[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, output = blockIdx.y * 32 + lane;
  const int pitch = conv.groups * conv.outputs, pixels = conv.images * conv.y.output * conv.x.output;
  const int first = blockIdx.z * task.slices, end = min(first + task.slices, pixels);
  const Digits tap(blockIdx.x, conv.x.taps, conv.channels);
  T sum = 0;
  if (output < pitch && first + warp < end) {
    const int channel = output / conv.outputs * conv.channels + tap.low;
    const int down = tap.high * conv.y.dilation - conv.y.padding, right = tap.middle * conv.x.dilation - conv.x.padding;
    Digits at(first + warp, conv.y.output, conv.x.output);
    const Digits step(8, conv.y.output, conv.x.output);
    for (int pixel = first + warp; pixel < end; pixel += 8) {
      const int row = at.middle * conv.y.stride + down, column = at.low * conv.x.stride + right;
      if ((u32)row < (u32)conv.y.input && (u32)column < (u32)conv.x.input) {
        const i64 seen = (i64)((at.high * conv.y.input + row) * conv.x.input + column);
        sum += image[seen * conv.groups * conv.channels + channel] * gradient[(i64)pixel * pitch + output];
      }
      at.add(step, conv.y.output, conv.x.output);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || output >= pitch) return;
  for (int other = 1; other < 8; other++) sum += sums[other][lane];
  grad_weight[((i64)blockIdx.z * gridDim.x + blockIdx.x) * pitch + output] = sum;
}

// y from the parts of a split reduction, added in their order: the same bits every time.
template <class T>
__global__ void add_splits(int splits, u32 count, int channels, int steps, const T* __restrict__ parts,
                           const T* __restrict__ scale, const T* __restrict__ shift, const T* __restrict__ residual,
                           T* __restrict__ y) {
  const u32 element = blockIdx.x * blockDim.x + threadIdx.x;
  if (element >= count) return;
  T sum = parts[element];
#pragma unroll 4
  for (int part = 1; part < splits; part++) sum += parts[(i64)part * count + element];
  const Epilogue<T> epilogue = {scale, shift, residual, steps};
  y[element] = epilogue(sum, element, element % channels);
}

// A number as an operand: itself, or the bits of bfloat16 (16 of them) or of TF32 (32).
template <class Operand, class T>
__device__ __forceinline__ Operand rounded(T value) {
  if constexpr (sizeof(Operand) == 2)
    return to_bf16(value);
  else if constexpr (Operand(0.5f) == 0)  // an integer: bits
    return to_tf32(value);
  else
    return value;
}

// An image as operands of another type, eight elements a thread.
template <class T, class Operand>
__global__ void round_image(i64 eighths, const T* __restrict__ image, Operand* __restrict__ operands) {
  const i64 eighth = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (eighth >= eighths) return;
  Vector<Operand, 8> result;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const Vector<T, 4> values = load<4>(image + eighth * 8 + half * 4);
#pragma unroll
    for (int i = 0; i < 4; i++) result.at[4 * half + i] = rounded<Operand>(values.at[i]);
  }
  store(operands + eighth * 8, result);
}

// How weights (taps, channels, groups * outputs) are laid out anew; extents and offsets in elements, per group.
struct Packing {
  int all_channels, all_outputs;  // with zeros to whole vectors
  int tap_stride, group_stride, channel_stride, output_stride;
  int backward;  // taps in the order of their classes
};

// Weights as an atom wants them. A tile of 32 x 32 goes through shared memory, so that both sides are read and
// written along lines. Blocks: tiles of channels, tiles of outputs, taps and groups.
template <class T, class Packed>
__global__ void pack_weights(Convolution conv, Packing packing, const T* __restrict__ weights,
                             Packed* __restrict__ packed) {
  __shared__ T tile[32][33];
  const int first_channel = blockIdx.x * 32, first_output = blockIdx.y * 32;
  const int group = blockIdx.z % conv.groups, tap = blockIdx.z / conv.groups;
  for (int i = threadIdx.y; i < 32; i += blockDim.y) {
    const int channel = first_channel + i, output = first_output + threadIdx.x;
    const int row = tap * conv.channels + channel, pitch = conv.groups * conv.outputs;
    const bool present = channel < conv.channels && output < conv.outputs;
    tile[i][threadIdx.x] = present ? weights[row * pitch + group * conv.outputs + output] : T(0);
  }
  __syncthreads();
  int slot = tap;
  if (packing.backward) {
    const int a = tap / conv.x.taps, b = tap % conv.x.taps;
    const TapClass rows(conv.y, a % conv.y.period), columns(conv.x, b % conv.x.period);
    slot = rows.start * conv.x.taps + rows.count * columns.start;
    slot += (rows.count - 1 - a / conv.y.period) * columns.count + columns.count - 1 - b / conv.x.period;
  }
  const bool turned = packing.channel_stride == 1;
  for (int i = threadIdx.y; i < 32; i += blockDim.y) {
    const int c = turned ? threadIdx.x : i, o = turned ? i : threadIdx.x;
    const int channel = first_channel + c, output = first_output + o;
    if (channel < packing.all_channels && output < packing.all_outputs)
      packed[slot * packing.tap_stride + group * packing.group_stride + channel * packing.channel_stride +
             output * packing.output_stride] = rounded<Packed>(tile[c][o]);
  }
}
