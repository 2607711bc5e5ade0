// For blocks that own a tile of an image's gradient and gather what is sent to it: no atomics, and the same bits always.
#pragma once

#include "common.cuh"

namespace refnet {

constexpr u32 ALL_LANES = 0xffffffffu;

// The pixels and channels of a block: blockIdx.x and y count tiles of size² pixels, z images and groups of `group`
// channels, or vectors of channels.
template <int size, int group>
struct Tile {
  int left, top, image, channel;

  __device__ __forceinline__ explicit Tile(int channels) {
    const int groups = (channels + group - 1) / group;
    left = blockIdx.x * size;
    top = blockIdx.y * size;
    image = blockIdx.z / groups;
    channel = blockIdx.z % groups * group;
  }
};

// Writes the `item`s of the threads that say `chosen` to `list`, in the threads' order, and returns how many; `counts`
// is room for a number a warp. All threads of the block must call it, and find the list written when it returns.
template <int warps>
__device__ __forceinline__ int select_in_order(bool chosen, int item, int* list, int* counts) {
  const int lane = threadIdx.x, warp = threadIdx.y;
  const u32 votes = __ballot_sync(ALL_LANES, chosen);
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int before = 0, total = 0;
  for (int i = 0; i < warps; i++) {
    if (i < warp) before += counts[i];
    total += counts[i];
  }
  if (chosen) list[before + __popc(votes & ((1u << lane) - 1))] = item;
  __syncthreads();
  return total;
}

}  // namespace refnet
