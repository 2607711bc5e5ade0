// One kernel for each fault that the checker knows. `wrong` plants it, in the line that says so; without, all is well.
// Each is launched with one block of 64 threads (unless the test says otherwise) over float x[64], y[64].

#define LANE (threadIdx.x % 32)

__global__ void read_past_end(int wrong, const float* x, float* y) {
  int i = threadIdx.x;
  y[i] = x[i + wrong];  // fault
}

__global__ void read_before_start(int wrong, const float* x, float* y) {
  int i = threadIdx.x;
  y[i] = x[i - wrong];  // fault
}

__global__ void write_past_end(int wrong, const float* x, float* y) {
  int i = threadIdx.x;
  y[i + wrong] = x[i];  // fault
}

__global__ void vector_over_the_end(int wrong, const float* x, float* y) {
  int i = threadIdx.x;
  if (i < 16) {
    const float4 v = *reinterpret_cast<const float4*>(x + 4 * (i + wrong));  // fault
    *reinterpret_cast<float4*>(y + 4 * i) = v;
  }
}

__global__ void atomic_past_end(int wrong, const float* x, float* y) {
  atomicAdd(&y[threadIdx.x + wrong], x[0]);  // fault
}

__global__ void copy_past_end(int wrong, const float* x, float* y) {
  if (threadIdx.x == 0) memcpy(y, x, 4 * (64 + wrong));  // fault
}

__global__ void dynamic_shared_past_end(int wrong, const float* x, float* y) {
  REFNET_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + wrong] = x[threadIdx.x];  // fault
  y[threadIdx.x] = tile[threadIdx.x + wrong];
}

__global__ void declared_extent(int wrong, const float* x, float* y) {
  __shared__ float tile[2][32], other[64];
  int row = threadIdx.x / 32;
  tile[row][LANE + wrong] = x[LANE];  // fault
  other[threadIdx.x] = 1;
  y[threadIdx.x] = tile[row][LANE + wrong] * other[threadIdx.x];
}

__global__ void local_array(int wrong, const float* x, float* y) {
  float own[4] = {0, 1, 2, 3};
  y[threadIdx.x] = own[threadIdx.x % 4 + wrong] + x[0];  // fault
}

__global__ void misaligned_vector(int wrong, const float* x, float* y) {
  const float2 v = *reinterpret_cast<const float2*>(x + 2 * (threadIdx.x % 31) + wrong);  // fault
  y[threadIdx.x] = v.x + v.y;
}

__global__ void write_to_const(int wrong, const float* x, float* y) {
  float* p = wrong ? const_cast<float*>(x) : y;
  p[threadIdx.x] = 1;  // fault
}

__global__ void follow_a_wild_pointer(int wrong, const float* x, float* y) {
  const float* p = wrong ? (const float*)(unsigned long long)0x123450 : x;
  y[threadIdx.x] = p[0];  // fault
}

__global__ void unwritten_static_shared(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  if ((int)threadIdx.x < 64 - wrong) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // fault
}

__global__ void unwritten_dynamic_shared(int wrong, const float* x, float* y) {
  REFNET_DYNAMIC_SHARED(float, tile);
  if ((int)threadIdx.x < 64 - wrong) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // fault
}

// What one block left in shared memory isn't there for the next: two blocks.
__global__ void shared_of_another_block(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  if (!wrong || blockIdx.x == 0) tile[threadIdx.x] = x[threadIdx.x];
  y[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x];  // fault
}

__global__ void read_an_output(int wrong, const float* x, float* y) {
  if (wrong) y[threadIdx.x] += 1;  // fault
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void output_not_written(int wrong, const float* x, float* y) {
  if ((int)threadIdx.x >= wrong) y[threadIdx.x] = x[threadIdx.x];
}

__global__ void copy_not_waited_for(int wrong, const float* x, float* y) {
  __shared__ __align__(16) float tile[256];
  emu_copy_async(tile + 4 * threadIdx.x, x + 4 * (threadIdx.x % 16), 16, 16);
  emu_copy_commit();
  emu_copy_wait(wrong);
  y[threadIdx.x] = tile[4 * threadIdx.x];  // fault
  emu_copy_wait(0);
}

__global__ void copy_waited_for_by_one_thread(int wrong, const float* x, float* y) {
  __shared__ __align__(16) float tile[256];
  for (int i = 0; i < 4; i++) tile[64 * i + threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  emu_copy_async(tile + 4 * threadIdx.x, x + 4 * (threadIdx.x % 16), 16, 16);
  emu_copy_commit();
  if (wrong) __syncthreads();
  emu_copy_wait(0);  // fault
  if (!wrong) __syncthreads();
  y[threadIdx.x] = tile[4 * (63 - threadIdx.x)];  // fault
}

__global__ void copy_never_waited_for(int wrong, const float* x, float* y) {
  __shared__ __align__(16) float tile[256];
  emu_copy_async(tile + 4 * threadIdx.x, x + 4 * (threadIdx.x % 16), 16, 16);
  emu_copy_commit();
  y[threadIdx.x] = 0;
  if (!wrong) emu_copy_wait(0);
}

__global__ void copy_over_what_is_read(int wrong, const float* x, float* y) {
  __shared__ __align__(16) float tile[256];
  for (int i = 0; i < 4; i++) tile[64 * i + threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[255 - threadIdx.x];  // fault
  if (!wrong) __syncthreads();
  emu_copy_async(tile + 4 * threadIdx.x, x, 16, 16);  // fault
  emu_copy_commit();
  emu_copy_wait(0);
}

__global__ void misaligned_copy(int wrong, const float* x, float* y) {
  __shared__ __align__(16) float tile[260];
  emu_copy_async(tile + 4 * threadIdx.x + wrong, x, 16, 16);  // fault
  emu_copy_commit();
  emu_copy_wait(0);
  y[threadIdx.x] = 0;
}

__global__ void barrier_missing(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];  // fault
  if (!wrong) __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // fault
}

__global__ void overwritten_while_read(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // fault
  if (!wrong) __syncthreads();
  tile[threadIdx.x] = 0;  // fault
}

__global__ void two_threads_write(int wrong, const float* x, float* y) {
  y[wrong ? threadIdx.x / 2 : threadIdx.x] = x[threadIdx.x];  // fault
}

__global__ void warp_barrier_missing(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];  // fault
  if (!wrong) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x ^ 1];  // fault
}

// A barrier of half a warp says nothing about the other half.
__global__ void warp_barrier_of_others(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];  // fault
  __syncwarp(wrong ? (LANE < 16 ? 0x0000ffffu : 0xffff0000u) : ~0u);
  y[threadIdx.x] = tile[threadIdx.x ^ 16];  // fault
}

__global__ void warp_barrier_for_a_block(int wrong, const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];  // fault
  if (wrong) __syncwarp();
  else __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x ^ 32];  // fault
}

// Three readers, one of another warp: whoever writes then must notice him.
__global__ void reader_of_another_warp(int wrong, const float* x, float* y) {
  __shared__ float value;
  if (threadIdx.x == 0) value = x[0];
  __syncthreads();
  y[threadIdx.x] = value;  // fault
  __syncwarp();
  if (!wrong) __syncthreads();
  if (threadIdx.x == 5) value = 1;  // fault
}

// Two blocks.
__global__ void blocks_write_the_same(int wrong, const float* x, float* y) {
  y[64 * (wrong ? 0 : blockIdx.x) + threadIdx.x] = x[threadIdx.x];  // fault
}

__global__ void block_reads_anothers(int wrong, const float* x, float* y) {
  if (blockIdx.x == 1) y[64 + threadIdx.x] = x[0];  // fault
  if (blockIdx.x == 0) y[threadIdx.x] = wrong ? y[64 + threadIdx.x] : 0;  // fault
}

__global__ void plain_beside_atomic(int wrong, const float* x, float* y) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, x[threadIdx.x]);  // fault
  if (!wrong) __syncthreads();
  y[threadIdx.x] = sum;  // fault
}

__global__ void bytes_of_one_word(int wrong, const float* x, float* y) {
  __shared__ unsigned char bytes[64];
  bytes[threadIdx.x] = x[0] > 0;  // fault
  if (wrong) bytes[(threadIdx.x + 1) % 64] = 2;  // fault
  y[threadIdx.x] = bytes[threadIdx.x];
}

__global__ void barriers_in_both_branches(int wrong, const float* x, float* y) {
  if ((int)threadIdx.x < 64 - wrong) {
    y[threadIdx.x] = x[0];
    __syncthreads();
  } else {
    y[threadIdx.x] = 2;
    __syncthreads();  // fault
  }
}

__global__ void return_before_barrier(int wrong, const float* x, float* y) {
  y[threadIdx.x] = x[0];
  if ((int)threadIdx.x < wrong) return;
  __syncthreads();  // fault
}

__global__ void barrier_in_a_loop(int wrong, const float* x, float* y) {
  for (int i = 0; i < (wrong && threadIdx.x == 9 ? 1 : 2); i++) __syncthreads();  // fault
  y[threadIdx.x] = x[0];
}

__global__ void shuffle_with_the_dead(int wrong, const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if (wrong && LANE == 7) return;
  y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);  // fault
}

__global__ void shuffle_from_outside_the_mask(int wrong, const float* x, float* y) {
  float v = x[threadIdx.x];
  if (LANE < 16) v += __shfl_down_sync(0xffffu, v, 8, wrong ? 32 : 16);  // fault
  y[threadIdx.x] = v;
}

__global__ void lane_not_in_its_mask(int wrong, const float* x, float* y) {
  y[threadIdx.x] = __any_sync(wrong ? 0x7fffffffu : ~0u, x[threadIdx.x] > 0);  // fault
}

__global__ void masks_that_differ(int wrong, const float* x, float* y) {
  unsigned mask = wrong && LANE == 3 ? 0xfu : ~0u;
  y[threadIdx.x] = __shfl_sync(mask, x[threadIdx.x], 0);  // fault
}

__global__ void lanes_that_do_different_things(int wrong, const float* x, float* y) {
  float v = x[threadIdx.x];
  if (wrong && LANE < 16) v = __ballot_sync(~0u, 1);
  else v = __shfl_sync(~0u, v, 0);  // fault
  y[threadIdx.x] = v;
}

__global__ void deadlock(int wrong, const float* x, float* y) {
  if (wrong && LANE < 16) __syncthreads();
  y[threadIdx.x] = __shfl_sync(~0u, x[0], 0);  // fault
  if (!(wrong && LANE < 16)) __syncthreads();
}

// Two blocks, of which the checker runs one at a time, as a GPU may.
__global__ void wait_for_another_block(int wrong, const float* x, float* y) {
  if (threadIdx.x == 0) {
    atomicAdd(&y[64 * blockIdx.x], x[0]);
    while (wrong && atomicAdd(&y[64 * (1 - blockIdx.x)], 0.0f) == 0) {}  // fault
  }
}

__global__ void sum_overflow(int wrong, const float* x, float* y) {
  y[threadIdx.x] = 2147483647 - 63 + (int)threadIdx.x + wrong;  // fault
}

__global__ void product_overflow(int wrong, const float* x, float* y) {
  int n = wrong ? 1 << 26 : 1 << 25;
  y[threadIdx.x] = n * (int)threadIdx.x;  // fault
}

__global__ void division_by_zero(int wrong, const float* x, float* y) {
  y[threadIdx.x] = 64 / ((int)threadIdx.x + 1 - wrong);  // fault
}

__global__ void shift_too_far(int wrong, const float* x, float* y) {
  y[threadIdx.x] = 1u << (wrong ? threadIdx.x : LANE);  // fault
}

__global__ void float_to_int(int wrong, const float* x, float* y) {
  float v = wrong ? 3e9f : 2e9f;
  y[threadIdx.x] = (int)v;  // fault
}

__global__ void nan_to_int(int wrong, const float* x, float* y) {
  float v = wrong ? logf(-1.0f - x[0]) : 1.0f;
  y[threadIdx.x] = (long long)v;  // fault
}

__global__ void trap(int wrong, const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  if ((int)threadIdx.x < wrong) __trap();  // fault
}
