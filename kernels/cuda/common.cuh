// What all kernels share. Everything that isn't plain CUDA C++ (PTX, dynamic shared memory) is wrapped here, once,
// with a body for the device and one for the emulator, so that no kernel holds assembly.
#pragma once

typedef unsigned long long u64;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;

#ifndef REFNET_EMULATED
#define REFNET_DYNAMIC_SHARED(T, name)                                  \
  extern __shared__ __align__(1024) unsigned char refnet_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(refnet_dynamic_shared)
#endif

namespace refnet {

// The nearest TF32 number, ties away from zero, as bits (cvt.rna.tf32.f32).
__device__ __forceinline__ u32 to_tf32(float x) {
#ifdef REFNET_EMULATED
  u32 bits = __float_as_uint(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
#else
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// d (16x8) += a (16x8, row major) b (8x8, column major): TF32 operands, float32 sums, PTX's fragment layout.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef REFNET_EMULATED
  emu_mma_m16n8k8_tf32(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Copy 4, 8 or 16 bytes from global to shared memory, or write zeros if `present` is false; done after copy_wait.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool present) {
#if defined(REFNET_EMULATED)
  emu_copy_async(shared, global, bytes, present ? bytes : 0);
#elif __CUDA_ARCH__ < 800  // Turing copies through registers, at once
  if constexpr (bytes == 16)
    *static_cast<uint4*>(shared) = present ? *static_cast<const uint4*>(global) : uint4{};
  else if constexpr (bytes == 8)
    *static_cast<uint2*>(shared) = present ? *static_cast<const uint2*>(global) : uint2{};
  else
    *static_cast<u32*>(shared) = present ? *static_cast<const u32*>(global) : 0;
#else
  u32 address = (u32)__cvta_generic_to_shared(shared);
  int size = present ? bytes : 0;
  if constexpr (bytes == 16)  // past the first-level cache: only whole 16 bytes may go that way
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(size));
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(bytes), "r"(size));
#endif
}

__device__ __forceinline__ void copy_commit() {
#if defined(REFNET_EMULATED)
  emu_copy_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}

// Wait until at most `pending` of this thread's groups of copies are still under way.
template <int pending>
__device__ __forceinline__ void copy_wait() {
#if defined(REFNET_EMULATED)
  emu_copy_wait(pending);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

template <class T>
__device__ __forceinline__ T not_a_number() {
  return T(__uint_as_float(0x7fc00000u));
}

// a b, rounded: the compiler doesn't fuse it with a sum, as it may fuse a * b.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) {
#ifdef REFNET_EMULATED
  return a * b;
#else
  return __dmul_rn(a, b);
#endif
}

// Add four numbers to four neighbours, whose address is a multiple of 16: from sm_90 on one instruction (red.v4.f32).
__device__ __forceinline__ void atomic_add4(float* to, float a, float b, float c, float d) {
#if !defined(REFNET_EMULATED) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(a, b, c, d));
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

// The nearest bfloat16 number, ties to even, as bits (cvt.rn.bf16.f32).
__device__ __forceinline__ u16 to_bf16(float x) {
#ifdef REFNET_EMULATED
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // every NaN becomes this one
  return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#else
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#endif
}

// Four 8x8 matrices of 16-bit elements, or 8x4 of 32-bit ones: lane 8 m + r points at row r, 16 bytes, of matrix m.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], const void* row) {
#ifdef REFNET_EMULATED
  emu_ldmatrix(out, row, 4, false);
#else
  u32 address = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#endif
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(u32 (&out)[4], const void* row) {
#ifdef REFNET_EMULATED
  emu_ldmatrix(out, row, 4, true);
#else
  u32 address = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#endif
}

// d (16x8) += a (16x16, row major) b (16x8, column major): bfloat16 pairs, float32 sums, PTX's fragment layout.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef REFNET_EMULATED
  emu_mma_m16n8k16_bf16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- a warpgroup's products (wgmma): sm_90a only -------------------------------------------------------------------

// Where rows of 128 bytes stand, one behind the other and swizzled: chunk c (16 bytes) of row r at c xor r % 8. The tile's
// first row is at a multiple of 1024 bytes. Two more in the descriptor are 32 bytes, a product's depth, further along.
__device__ __forceinline__ u64 swizzled_tile(const void* tile) {
  constexpr u64 GROUP_OF_ROWS = 8 * 128 / 16, SWIZZLE_128 = 1, LEADING = 1;  // the last isn't used by a swizzled tile
  const u64 start = ((u32)__cvta_generic_to_shared(tile) & 0x3ffff) / 16;
  return start | LEADING << 16 | GROUP_OF_ROWS << 32 | SWIZZLE_128 << 62;
}

// What copies and stores have written so far is seen by wgmma, which reads shared memory by another way than they.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef REFNET_EMULATED
  emu_fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The compiler moves no use of the sums across this place: it doesn't know that wgmma writes them later.
template <int N>
__device__ __forceinline__ void hold(float (&sums)[N]) {
#ifndef REFNET_EMULATED
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

// Before the first product that uses sums which something else has written.
template <int N>
__device__ __forceinline__ void wgmma_fence(float (&sums)[N]) {
  hold(sums);
#ifdef REFNET_EMULATED
  emu_wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#ifdef REFNET_EMULATED
  emu_wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Wait for all products of this warpgroup's that were committed; the sums are there then, and the tiles are free.
template <int N>
__device__ __forceinline__ void wgmma_wait(float (&sums)[N]) {
#ifdef REFNET_EMULATED
  emu_wgmma_wait(0);
#else
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
  hold(sums);
}

// A product that is added to 64 sums of each thread: the instruction, the sums, both tiles, and the flags behind them.
#define REFNET_WGMMA(instruction, d, a, b, flags) \
  asm volatile( \
      "{ .reg .pred add; setp.eq.u32 add, 0, 0;\n" instruction " {" \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63" \
      "}, %64, %65, add, " flags "; }" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]) \
      : "l"(a), "l"(b))

// d (64x128) += a (64x8) b^T (128x8), TF32 (the 13 lowest bits are passed over), lines along the depth, float32 sums.
__device__ __forceinline__ void wgmma_m64n128k8_tf32(float (&d)[64], u64 a, u64 b) {
#ifdef REFNET_EMULATED
  emu_wgmma_tf32(d, 128, a, b, true);
#else
  REFNET_WGMMA("wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32", d, a, b, "1, 1");
#endif
}

// The same of bfloat16: a (64x16), b^T (128x16).
__device__ __forceinline__ void wgmma_m64n128k16_bf16(float (&d)[64], u64 a, u64 b) {
#ifdef REFNET_EMULATED
  emu_wgmma_bf16(d, 128, a, b, true, false, false);
#else
  REFNET_WGMMA("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", d, a, b, "1, 1, 0, 0");
#endif
}

}  // namespace refnet
