// What kernels may do, one thing a kernel.

typedef unsigned long long u64;

__global__ void who_am_i(int* y) {  // of a grid of blocks in three dimensions
  int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  int at = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  y[at] = at;
}

__global__ void block_sum(int n, const float* x, float* y) {
  __shared__ float partial[32];
  float sum = (int)threadIdx.x < n ? x[blockIdx.x * n + threadIdx.x] : 0;
  for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned i = 1; i < blockDim.x / 32; i++) sum += partial[i];
    y[blockIdx.x] = sum;
  }
}

__global__ void shuffles(int* y) {  // 8 rows of 32
  int lane = threadIdx.x;
  y[0 * 32 + lane] = __shfl_sync(~0u, lane, 5);
  y[1 * 32 + lane] = __shfl_sync(~0u, lane, 9, 8);
  y[2 * 32 + lane] = __shfl_up_sync(~0u, lane, 3);
  y[3 * 32 + lane] = __shfl_down_sync(~0u, lane, 3, 16);
  y[4 * 32 + lane] = __shfl_xor_sync(~0u, lane, 6);
  // halves of the warp on their own, the odd ones twice
  unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int sum = lane;
  for (int i = 0; i < (lane < 16 ? 1 : 2); i++) sum = __shfl_xor_sync(half, sum, 1) + 100;
  y[5 * 32 + lane] = sum;
  double wide = __shfl_sync(~0u, 1.5 * lane, 31 - lane);
  y[6 * 32 + lane] = (int)(2 * wide);
  y[7 * 32 + lane] = __shfl_sync(~0u, make_int4(lane, 0, 0, -lane), 7).w;
}

__global__ void votes(unsigned* y) {  // 10 rows of 32
  int lane = threadIdx.x;
  y[0 * 32 + lane] = __ballot_sync(~0u, lane % 3 == 0);
  y[1 * 32 + lane] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 32) + 4 * __any_sync(~0u, lane > 31);
  unsigned odd = 0xaaaaaaaau, own = lane % 2 ? odd : ~odd;
  y[2 * 32 + lane] = __ballot_sync(own, lane > 15);
  y[3 * 32 + lane] = __match_any_sync(~0u, lane / 4);
  int all;
  __match_all_sync(~0u, lane / 32, &all);
  y[4 * 32 + lane] = all;
  y[5 * 32 + lane] = __reduce_add_sync(~0u, (unsigned)lane);
  y[6 * 32 + lane] = __reduce_max_sync(own, (unsigned)lane);
  y[7 * 32 + lane] = (unsigned)__reduce_min_sync(~0u, lane - 7);
  y[8 * 32 + lane] = __reduce_or_sync(~0u, 1u << lane % 8);
  y[9 * 32 + lane] = __popc(__activemask());
  __syncwarp();  // who has ended isn't active
}

__global__ void last_warp(unsigned* y) {  // of a block of 40 threads: 8 lanes
  y[threadIdx.x] = __ballot_sync(~0u, 1);
}

__global__ void block_votes(int* y) {
  int t = threadIdx.x;
  y[t] = __syncthreads_count(t % 2 == 0);
  y[64 + t] = __syncthreads_or(t == 63);
  y[128 + t] = __syncthreads_and(t != 63);
}

__global__ void atomics(int* i, unsigned* u, u64* l, float* f, double* d) {
  int t = threadIdx.x + blockDim.x * blockIdx.x;
  atomicAdd(&i[0], t);
  atomicMax(&i[1], t);
  atomicMin(&i[2], -t);
  atomicSub(&i[3], 1);
  atomicOr(&u[0], 1u << t % 32);
  atomicAnd(&u[1], ~(1u << t % 32));
  atomicXor(&u[2], 1u << t % 32);
  atomicInc(&u[3], 9);
  atomicMax(&l[0], (u64)t << 40);
  atomicAdd(&f[0], 0.5f);
  atomicAdd(&d[0], 0.25);
  atomicAdd(reinterpret_cast<float4*>(f + 4), make_float4(1, 2, 3, 4));
  atomicCAS(&i[4 + blockIdx.x], 0, 7);
  atomicCAS(&i[4 + blockIdx.x], 1, 8);
}

// The order in which threads take tickets; a lock within a block.
__global__ void tickets(int* next, int* y) { y[threadIdx.x] = atomicAdd(next, 1); }
__global__ void two_tickets(int* next, int* y) {
  y[threadIdx.x] = atomicAdd(next, 1);
  y[blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}
__global__ void block_tickets(int* next, int* y) { y[blockIdx.x] = atomicAdd(next, 1); }
__global__ void lock(int* taken, int* y) {
  while (atomicCAS(taken, 0, 1)) {}
  atomicAdd(y, 1);
  atomicExch(taken, 0);
}

__global__ void async_pipeline(const float* x, int tiles, float* y) {  // sums of columns, two tiles under way
  __shared__ __align__(16) float tile[2][128];
  float sum = 0;
  for (int i = 0; i < tiles + 1; i++) {
    if (i < tiles) emu_copy_async(&tile[i % 2][4 * threadIdx.x], x + 128 * i + 4 * threadIdx.x, 16, i == 1 ? 8 : 16);
    emu_copy_commit();
    if (i > 0) {
      emu_copy_wait(1);
      __syncwarp();
      for (int j = 0; j < 4; j++) sum += tile[(i - 1) % 2][32 * j + threadIdx.x];
      __syncwarp();
    }
  }
  emu_copy_wait(0);
  y[threadIdx.x] = sum;
}

struct Lists {
  float* out[20];
  const float* in[20];
  int lengths[20];
};
__global__ void scale_all(Lists lists, float factor) {
  for (int i = threadIdx.x; i < lists.lengths[blockIdx.x]; i += blockDim.x)
    lists.out[blockIdx.x][i] = factor * lists.in[blockIdx.x][i];
}
__global__ void gather_by_pointer(const u64* pointers, float* y) {
  y[threadIdx.x] = *reinterpret_cast<const float*>(pointers[threadIdx.x]);
}

__constant__ float table[4] = {1, 2, 4, 8};
__global__ void constants(float* y) { y[threadIdx.x] = table[threadIdx.x % 4]; }

__global__ void scalars(bool b, signed char c, unsigned short s, int i, long long l, float f, double d, double* y) {
  y[0] = b + c + s + i + (double)l + f + d;
}

__global__ void conversions(const float* x, int* y) {
  int t = threadIdx.x;
  y[t] = __float2int_rn(x[t]);
  y[8 + t] = __float2int_rd(x[t]);
  y[16 + t] = (int)__float2uint_rz(x[t]);
}

template <class T> __global__ void mathematics(const T* x, T* y) {
  T v = x[threadIdx.x];
  y[threadIdx.x] = max(min(sqrt(v), exp(-v)), fabs(floor(v) - v)) + (isnan(v) ? T(1) : log1p(v)) + fma(v, v, v);
}

__global__ void many_locals(float* y) {  // 500 KB of them
  float own[128000];
  for (int i = 0; i < 128000; i += 1000) own[i] = i + threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = own[127000 - 1000 * threadIdx.x];
}

__global__ void huge_static_shared(float* y) {
  __shared__ float tile[16384];
  tile[threadIdx.x] = 1;
  y[threadIdx.x] = tile[threadIdx.x];
}
