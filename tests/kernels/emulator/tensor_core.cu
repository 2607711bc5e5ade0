// Matrix instructions on operands whose layout the test makes by itself.

typedef unsigned long long u64;

// d (16x8) = a (16x16) b^T (8x16), by way of ldmatrix; b is transposed by the load if it is given as 16x8.
__global__ void mma_bf16(const unsigned short* a, const unsigned short* b, int transposed, float* d) {
  __shared__ __align__(16) unsigned short tile_a[256], tile_b[128];
  int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) tile_a[i] = a[i];
  for (int i = lane; i < 128; i += 32) tile_b[i] = b[i];
  __syncwarp();
  unsigned fragment_a[4], fragment_b[2];
  float sums[4] = {0, 0, 0, 0};
  emu_ldmatrix(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8, 4, false);
  if (transposed) emu_ldmatrix(fragment_b, tile_b + lane % 16 * 8, 2, true);
  else emu_ldmatrix(fragment_b, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8, 2, false);
  emu_mma_m16n8k16_bf16(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; i++) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sums[i];
}

// d (16x8) = a (16x8) b (8x8), from registers.
__global__ void mma_tf32(const unsigned* a, const unsigned* b, float* d) {
  int lane = threadIdx.x, group = lane / 4, member = lane % 4;
  unsigned fragment_a[4], fragment_b[2];
  for (int i = 0; i < 4; i++) fragment_a[i] = a[(group + 8 * (i % 2)) * 8 + member + 4 * (i / 2)];
  for (int i = 0; i < 2; i++) fragment_b[i] = b[(member + 4 * i) * 8 + group];
  float sums[4] = {0, 0, 0, 0};
  emu_mma_m16n8k8_tf32(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; i++) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = sums[i];
}

// One matrix of 8x8 for each of the counts that ldmatrix has.
__global__ void ldmatrix(const unsigned short* x, int matrices, int transposed, unsigned* y) {
  __shared__ __align__(16) unsigned short tile[256];
  for (int i = threadIdx.x; i < 64 * matrices; i += 32) tile[i] = x[i];
  __syncwarp();
  unsigned out[4];
  emu_ldmatrix(out, tile + 8 * (threadIdx.x % (8 * matrices)), matrices, transposed);
  for (int m = 0; m < matrices; m++) y[32 * m + threadIdx.x] = out[m];
}

__device__ void store_sums(const float* sums, int columns, float* d) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < columns / 2; i++)
    d[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * columns + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = sums[i];
}

// d (64 x columns) = sum over steps of A_i B_i; `image` is what shared memory holds, and a step moves both descriptors.
template <bool bf16, int columns>
__global__ void wgmma(const uint4* image, int chunks, u64 a, u64 b, int steps, u64 step_a, u64 step_b, int transposed,
                      float* d) {
  REFNET_DYNAMIC_SHARED(uint4, tiles);
  for (int i = threadIdx.x; i < chunks; i += 128) tiles[i] = image[i];
  emu_fence_proxy_async();
  __syncthreads();
  u64 base = __cvta_generic_to_shared(tiles) / 16;
  float sums[columns / 2];
  emu_wgmma_fence();
  for (int i = 0; i < steps; i++) {
    u64 descriptor_a = a + base + i * step_a, descriptor_b = b + base + i * step_b;
    if (bf16) emu_wgmma_bf16(sums, columns, descriptor_a, descriptor_b, i > 0, transposed & 1, transposed & 2);
    else emu_wgmma_tf32(sums, columns, descriptor_a, descriptor_b, i > 0);
    emu_wgmma_commit();
  }
  emu_wgmma_wait(0);
  store_sums(sums, columns, d);
}

enum Mistake { none, no_proxy_fence, no_fence, early_read, overwritten, overwritten_by_another, unaligned_tile,
               outside, different_tiles, no_wait, no_barrier, wait_for_too_few };

// Tiles of ones without a swizzle: d is 8 everywhere. `mistake` is one of Mistake.
__global__ void wgmma_mistakes(int mistake, float* d) {
  __shared__ __align__(1024) float a[64 * 8], b[8 * 8];
  for (int i = threadIdx.x; i < 64 * 8; i += 128) a[i] = 1;
  if (threadIdx.x < 64) b[threadIdx.x] = 1;
  if (mistake != no_proxy_fence) emu_fence_proxy_async();
  if (mistake != no_barrier) __syncthreads();
  // chunks of 8 rows x 16 bytes, the second half of the depth behind the first
  u64 tile_a = __cvta_generic_to_shared(a) / 16 | 64ull << 16 | 8ull << 32;
  u64 tile_b = __cvta_generic_to_shared(b) / 16 | 8ull << 16 | 8ull << 32;
  if (mistake == unaligned_tile) tile_b = (tile_b + 8) | 1ull << 62;
  if (mistake == outside) tile_b |= 0x3fffull << 16;
  if (mistake == different_tiles && threadIdx.x == 70) tile_a++;
  float sums[4];
  if (mistake != no_fence) emu_wgmma_fence();
  emu_wgmma_tf32(sums, 8, tile_a, tile_b, false);
  emu_wgmma_commit();
  if (mistake == wait_for_too_few) emu_wgmma_wait(1);
  if (mistake == early_read || mistake == wait_for_too_few) d[0] = sums[0];
  if (mistake == overwritten) a[4 * threadIdx.x] = 2;
  if (mistake == overwritten_by_another) {
    __syncthreads();
    a[threadIdx.x] = 1;
    __syncthreads();
  }
  if (mistake != no_wait) emu_wgmma_wait(0);
  if (mistake != no_wait) store_sums(sums, 8, d);
}
