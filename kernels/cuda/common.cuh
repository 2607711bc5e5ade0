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

}  // namespace refnet
