// Non-maximum suppression, refnet/ops/nms.py, in three launches that never wait for the host: nms_order sorts by score,
// nms_overlaps compares all pairs, nms_scan decides. Boxes are handled in tiles of 64, a bit of a word each. Every
// kernel takes a number of images of n boxes. Compiled without contraction: each product and sum rounds as in NumPy.
#include "common.cuh"

constexpr int kTile = 64;

// What stands in the order, behind all boxes, for a row that isn't there or whose score isn't a number.
constexpr int kAbsent = -1, kNotANumber = -2;

template <class T> struct KeyOf;
template <> struct KeyOf<float> { using Type = u32; };
template <> struct KeyOf<double> { using Type = u64; };

template <class T> constexpr T kMargin = sizeof(T) == 4 ? 0x1p-21 : 0x1p-50;  // 8 units in the last place

// Integers that ascend as scores descend; 0 and -0 are one. Above all of them come absent rows, then those that aren't
// numbers; the greatest integer is left for the caller.
template <class Key> constexpr Key kAbsentKey = ~Key(2);
template <class Key> constexpr Key kNotANumberKey = ~Key(1);

template <class T>
__device__ __forceinline__ typename KeyOf<T>::Type sort_key(T score, bool present) {
  using Key = typename KeyOf<T>::Type;
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  if (!present) return kAbsentKey<Key>;
  if (score != score) return kNotANumberKey<Key>;
  if (score == 0) score = 0;
  Key bits;
  memcpy(&bits, &score, sizeof bits);
  return bits & kSign ? bits : bits ^ (kSign - 1);
}

// order[rank] = the row of that rank, best first, the lower row first of equals.
//
// A row's rank is the number of rows before it. Counting them takes n^2 comparisons, which is little beside the n^2 / 2
// IoUs to come, and is one launch. A lane counts for one of the block's 32 rows, a warp through an eighth of the keys.
// A row with an equal key counts if it comes first; so the keys of all rows before the block's are lowered by one, and
// one comparison serves all. flags[row] == present says whether the row is there.
template <class T>
__global__ void __launch_bounds__(256)
nms_order(int n, const T* __restrict__ scores, const bool* __restrict__ flags, bool present, int* __restrict__ order) {
  using Key = typename KeyOf<T>::Type;
  constexpr int kRows = 32, kWarps = 8, kChunk = 1024, kShare = kChunk / kWarps;
  __shared__ __align__(16) Key keys[kChunk];
  __shared__ int ranks[kRows];
  const i64 image = (i64)blockIdx.y * n;
  scores += image, flags += image, order += image;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int first = blockIdx.x * kRows, row = first + lane;
  const Key own = row < n ? sort_key(scores[row], flags[row] == present) : ~Key(0);
  if (thread < kRows) ranks[thread] = 0;

  int rank = 0;
  for (int start = 0; start < n; start += kChunk) {
    __syncthreads();
    for (int i = thread; i < kChunk; i += 32 * kWarps) {
      const int other = start + i;
      const bool beside = other >= first && other < first + kRows;  // the block's own rows are compared below
      keys[i] = other < n && !beside ? sort_key(scores[other], flags[other] == present) - (other < first) : ~Key(0);
    }
    __syncthreads();
    const Key* share = keys + warp * kShare;
#pragma unroll 16
    for (int i = 0; i < kShare; i++) rank += share[i] < own;
  }
  if (warp == 0)
    for (int r = 0; r < kRows; r++) {
      const Key other = __shfl_sync(~0u, own, r);
      rank += other < own || (other == own && r < lane);
    }
  atomicAdd(&ranks[lane], rank);
  __syncthreads();
  if (thread < kRows && row < n)
    order[ranks[thread]] = own == kAbsentKey<Key> ? kAbsent : own == kNotANumberKey<Key> ? kNotANumber : row;
}

template <class T>
struct __align__(4 * sizeof(T)) Box {
  T x1, y1, x2, y2;
};

template <class T>
__device__ __forceinline__ T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// The area of the intersection; 0 or less where there is none.
template <class T>
__device__ __forceinline__ T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = min(a.x2, b.x2) - max(a.x1, b.x1), height = min(a.y2, b.y2) - max(a.y1, b.y1);
  return max(width, T(0)) * height;
}

// Whether the boxes of one group overlap, fl(i / u) > threshold, for all pairs of two tiles.
//
// Tiles at most one apart give near[j] = {bits of j's own tile, bits of the tile before}: the better boxes that overlap
// box j. Tiles further apart give far[i][tile]: the worse boxes there that box i overlaps. So nms_scan has what the
// next decision waits for in one word of each box, and what only later decisions need in rows.
//
// Most pairs are decided without a division. With t' = fl(t (1 + m)) for a margin m = 2^-21 (in binary32), i > fl(t' u)
// means i / u > t (1 + 2^-23), which rounds to more than t; likewise below with 1 - m. Only pairs within the margin are
// divided, afterwards. Where u may be tiny, or negative for corners in the wrong order, or t is near 0, so that these
// products may be denormal, all pairs of a box are: t' is no number then, and no comparison holds.
//
// grid: (tiles | 1, (tiles + 1) / 2, images). The upper triangle is folded: row y of the grid holds the tiles of row y
// and, behind them, those of a row from the other end.
template <class T>
__global__ void __launch_bounds__(kTile)
nms_overlaps(int n, const T* __restrict__ boxes, const i64* __restrict__ groups, const int* __restrict__ order,
             T threshold, u64* __restrict__ near, u64* __restrict__ far) {
  const int tiles = (n + kTile - 1) / kTile, thread = threadIdx.x;
  const int behind = (int)blockIdx.x - (tiles - (int)blockIdx.y);  // position in the second of the two rows
  const int row = behind < 0 ? blockIdx.y : 2 * tiles - (int)gridDim.x - (int)blockIdx.y;
  const int column = row + (behind < 0 ? (int)blockIdx.x : behind);
  const i64 image = (i64)blockIdx.z * n;
  boxes += 4 * image, groups += image, order += image, near += 2 * image, far += image * tiles;
  if (order[column * kTile] < 0) return;  // nothing but absent rows from here on

  __shared__ Box<T> others[kTile];
  __shared__ T areas[kTile];
  __shared__ i64 their_groups[kTile];
  const bool is_near = column - row < 2;
  const int own_at = (is_near ? column : row) * kTile + thread, other_at = (is_near ? row : column) * kTile + thread;
  const int other = other_at < n ? order[other_at] : kAbsent, own = own_at < n ? order[own_at] : kAbsent;
  auto load = [&](int index) {
    if (index < 0) return Box<T>{0, 0, 0, 0};  // overlaps nothing
    const T* corner = boxes + 4 * (i64)index;
    return Box<T>{corner[0], corner[1], corner[2], corner[3]};
  };
  others[thread] = load(other);
  areas[thread] = area(others[thread]);
  their_groups[thread] = other < 0 ? 0 : groups[other];
  const Box<T> box = load(own);
  const T own_area = area(box);
  const i64 group = own < 0 ? 0 : groups[own];
  const bool in_order = __syncthreads_and(areas[thread] >= 0);

  const bool normal = in_order && threshold > T(0x1p-20) && own_area > T(0x1p-60);
  const T over = normal ? threshold * (1 + kMargin<T>) : T(0) / T(0);
  const T under = normal ? threshold * (1 - kMargin<T>) : T(0) / T(0);
  constexpr int kUnroll = sizeof(T) == 4 ? 16 : 4;  // more would spill
  u64 overlaps = 0, unsure = 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    u32 above = 0, not_below = 0;
#pragma unroll(kUnroll)
    for (int bit = 0; bit < 32; bit++) {
      const int i = 32 * half + bit;
      const bool together = group == their_groups[i];
      const T meeting = intersection(box, others[i]), joint = own_area + areas[i] - meeting;
      if (together && meeting > over * joint) above |= 1u << bit;
      if (together && !(meeting < under * joint)) not_below |= 1u << bit;
    }
    overlaps |= (u64)above << (32 * half), unsure |= (u64)not_below << (32 * half);
  }
  for (unsure &= ~overlaps; unsure; unsure &= unsure - 1) {
    const int i = __ffsll(unsure) - 1;
    const T meeting = intersection(box, others[i]);
    if (meeting > 0 && meeting / (own_area + areas[i] - meeting) > threshold) overlaps |= 1ull << i;
  }

  if (own_at >= n) return;
  if (!is_near) {
    far[(i64)own_at * tiles + column] = overlaps;
  } else if (row == column) {
    near[2 * own_at] = overlaps & ((1ull << thread) - 1);
    if (row == 0) near[2 * own_at + 1] = 0;
  } else {
    near[2 * own_at + 1] = overlaps;
  }
}

// A box whose turn has come.
struct Candidate {
  int index;           // its row, negative if there is none
  u64 within, before;  // the better boxes of its tile, and of the tile before, that overlap it
};

__device__ __forceinline__ Candidate candidate(int at, int n, const int* order, const u64* near) {
  if (at >= n) return {kAbsent, 0, 0};
  return {order[at], near[2 * at], near[2 * at + 1]};
}

// Bit i of the result: `low` of lane i, or for i >= 32 `high` of lane i - 32.
__device__ __forceinline__ u64 ballot64(bool low, bool high) {
  return __ballot_sync(~0u, low) | (u64)__ballot_sync(~0u, high) << 32;
}

// kept[k] = the k-th row that is kept, -1 behind them; report = {how many, whether a score isn't a number}.
//
// One block an image goes through the tiles, best first, until `limit` boxes are kept. In step s warp 0 decides on tile
// s while the others mark what the boxes kept in tile s - 1 remove from tile s + 1 on; its effect on tile s itself warp
// 0 takes from `before`. Within a tile, box j is kept if no box that overlaps it is kept among those before: these
// equations have one solution, since each asks for earlier boxes only, and repeated insertion gets the first k boxes
// right after k rounds, in practice all of them after a few.
//
// Dynamic shared memory: 8 bytes a tile.
__global__ void __launch_bounds__(1024)
nms_scan(int n, int limit, const int* __restrict__ order, const u64* __restrict__ near, const u64* __restrict__ far,
         i64* __restrict__ kept, i64* __restrict__ report) {
  REFNET_DYNAMIC_SHARED(u32, removed);  // two words a tile
  __shared__ u64 kept_of_tile[2];       // of the present tile and the one before, by parity
  __shared__ int found_at[2];
  const int tiles = (n + kTile - 1) / kTile, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const i64 image = (i64)blockIdx.x * n;
  order += image, near += 2 * image, far += image * tiles, kept += (i64)blockIdx.x * limit, report += 2 * blockIdx.x;

  int live = 0;  // tiles that hold a box; the others have no bits
  for (int start = 0; start < tiles; start += blockDim.x)
    live += __syncthreads_count(start + thread < tiles && order[(start + thread) * kTile] >= 0);
  for (int word = thread; word < 2 * live; word += blockDim.x) removed[word] = 0;
  __syncthreads();

  int found = 0;
  u64 kept_before = 0;
  Candidate next_low = candidate(lane, live ? n : 0, order, near);
  Candidate next_high = candidate(lane + 32, live ? n : 0, order, near);
  for (int step = 0; step < live && found < limit; step++) {
    if (warp == 0) {
      const Candidate low = next_low, high = next_high;
      if (step + 1 < live) {  // on their way while this tile is decided
        next_low = candidate((step + 1) * kTile + lane, n, order, near);
        next_high = candidate((step + 1) * kTile + lane + 32, n, order, near);
      }
      const bool low_alive = low.index >= 0 && !(removed[2 * step] >> lane & 1) && !(low.before & kept_before);
      const bool high_alive = high.index >= 0 && !(removed[2 * step + 1] >> lane & 1) && !(high.before & kept_before);
      u64 now = ballot64(low_alive, high_alive), previous;
      do {
        previous = now;
        now = ballot64(low_alive && !(low.within & previous), high_alive && !(high.within & previous));
      } while (now != previous);
      const u32 lanes_before = (1u << lane) - 1;
      const int at_low = found + __popc((u32)now & lanes_before);
      const int at_high = found + __popc((u32)now) + __popc((u32)(now >> 32) & lanes_before);
      if (now >> lane & 1 && at_low < limit) kept[at_low] = low.index;
      if (now >> (lane + 32) & 1 && at_high < limit) kept[at_high] = high.index;
      kept_before = now;
      if (lane == 0) kept_of_tile[step % 2] = now, found_at[step % 2] = found + __popcll(now);
    } else if (step > 0) {
      const u64 kept_there = kept_of_tile[(step - 1) % 2];
      for (int box = warp - 1; box < kTile; box += blockDim.x / 32 - 1) {
        if (!(kept_there >> box & 1)) continue;
        const u32* row = reinterpret_cast<const u32*>(far + (i64)((step - 1) * kTile + box) * tiles);
#pragma unroll 4
        for (int word = 2 * (step + 1) + lane; word < 2 * live; word += 32) {
          const u32 bits = row[word];
          if (bits) atomicOr(&removed[word], bits);
        }
      }
    }
    __syncthreads();
    found = found_at[step % 2];
  }
  found = min(found, limit);
  for (int at = found + thread; at < limit; at += blockDim.x) kept[at] = -1;
  if (thread == 0) report[0] = found, report[1] = order[n - 1] == kNotANumber;
}
