// compile a .cu kernel file with plain g++ (x86-64) and run it on the CPU.
// Included first (-include) when the kernel source is built for the host; NVRTC/nvcc never see it.
// One CUDA thread = one fiber (only if it ever blocks), one CUDA block = one OS thread at a time.
#pragma once
#include <cstdint>
#include <cstddef>
#include <cstring>
#include <cmath>
#include <type_traits>
#include <utility>
#define REFNET_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local          // lives in this .so's TLS block: one block per OS thread
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define EMU_NOSAN __attribute__((no_sanitize("thread"), noinline))
typedef long long longlong_t;
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
static inline float2 make_float2(float a, float b) { return {a, b}; }

struct emu_ctx { uint3 tid, bid; dim3 bdim, gdim; unsigned lin, lane, warp; void* dyn; };
extern "C" {
extern __thread emu_ctx* emu_cur __attribute__((tls_model("initial-exec")));
void emu_syncthreads(void* pc);                       // block barrier
int  emu_syncthreads_red(void* pc, int v, int op);    // 0 or, 1 and, 2 count
void emu_syncwarp(unsigned mask, void* pc);
void* emu_exchange(unsigned mask, const void* v, unsigned n, void* pc); // returns [32][64] bytes, valid to next warp op
void emu_atomic(void* p, unsigned n, void* pc);       // tells the checker
void emu_cp_async(void* dst, const void* src, unsigned n, unsigned src_n);
void emu_cp_commit(); void emu_cp_wait(unsigned keep);
void emu_mma_tf32(float* d, const char* s);           // m16n8k8, PTX fragment layout, operands truncated to tf32
void emu_mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b);   // layouts: tensor_core.cpp
void emu_mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b);
void emu_ldmatrix(unsigned* out, const void* row, int matrices, bool transposed);
void emu_trap(const char* why);
int emu_launch(void (*thunk)(void*), void* data, const unsigned* grid, const unsigned* block, size_t smem, void* (*tls)());
}
#define threadIdx (emu_cur->tid)
#define blockIdx (emu_cur->bid)
#define blockDim (emu_cur->bdim)
#define gridDim (emu_cur->gdim)
static constexpr int warpSize = 32;
#define EMU_PC __builtin_extract_return_addr(__builtin_return_address(0))
#define __syncthreads() emu_syncthreads((void*)(size_t)__LINE__)   // source line, not PC: optimisers duplicate calls
#define __syncthreads_or(v) emu_syncthreads_red((void*)(size_t)__LINE__, v, 0)
#define __syncthreads_and(v) emu_syncthreads_red((void*)(size_t)__LINE__, v, 1)
#define __syncthreads_count(v) emu_syncthreads_red((void*)(size_t)__LINE__, v, 2)
EMU_NOSAN static void __syncwarp(unsigned m = ~0u) { emu_syncwarp(m, EMU_PC); }
#define REFNET_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emu_cur->dyn)
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}
static inline void __trap() { emu_trap("__trap"); }

// ---- warp collectives ----------------------------------------------------------------------
template <class T> EMU_NOSAN T emu_shfl(unsigned m, T v, int src) {
  static_assert(sizeof(T) <= 64, "shfl payload");
  char* s = (char*)emu_exchange(m, &v, sizeof(T), EMU_PC);
  T r; memcpy(&r, s + 64 * (src & 31), sizeof(T)); return r;
}
template <class T> inline T __shfl_sync(unsigned m, T v, int src, int w = 32) {
  int l = emu_cur->lane; return emu_shfl(m, v, (l & ~(w - 1)) | (src & (w - 1))); }
template <class T> inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) {
  int l = emu_cur->lane, s = l + (int)d; return emu_shfl(m, v, (s & ~(w - 1)) == (l & ~(w - 1)) ? s : l); }
template <class T> inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) {
  int l = emu_cur->lane, s = l - (int)d; return emu_shfl(m, v, s >= (l & ~(w - 1)) ? s : l); }
template <class T> inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
  int l = emu_cur->lane, s = l ^ x; return emu_shfl(m, v, (s & ~(w - 1)) <= (l & ~(w - 1)) ? s : l); }
EMU_NOSAN static unsigned __ballot_sync(unsigned m, int p) {
  int v = p != 0; char* s = (char*)emu_exchange(m, &v, 4, EMU_PC); unsigned r = 0;
  for (int i = 0; i < 32; i++) if (m >> i & 1) r |= (unsigned)(*(int*)(s + 64 * i)) << i;
  return r;
}
static inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
static inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
#define __activemask() (~0u)
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }

// ---- atomics (exempt from the race check, still bounds checked) ----------------------------
template <class T, class F> EMU_NOSAN T emu_rmw(T* p, F f) {
  emu_atomic(p, sizeof(T), EMU_PC);
  T o, n; __atomic_load(p, &o, __ATOMIC_RELAXED);
  do n = f(o); while (!__atomic_compare_exchange(p, &o, &n, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return o;
}
template <class T, class U> inline T atomicAdd(T* p, U v) { return emu_rmw(p, [v](T o) { return (T)(o + v); }); }
template <class T, class U> inline T atomicMax(T* p, U v) { return emu_rmw(p, [v](T o) { return o > (T)v ? o : (T)v; }); }
template <class T, class U> inline T atomicMin(T* p, U v) { return emu_rmw(p, [v](T o) { return o < (T)v ? o : (T)v; }); }
template <class T, class U> inline T atomicOr(T* p, U v) { return emu_rmw(p, [v](T o) { return (T)(o | v); }); }
template <class T, class U> inline T atomicAnd(T* p, U v) { return emu_rmw(p, [v](T o) { return (T)(o & v); }); }
template <class T, class U> inline T atomicExch(T* p, U v) { return emu_rmw(p, [v](T) { return (T)v; }); }
template <class T, class U, class V> inline T atomicCAS(T* p, U c, V v) { return emu_rmw(p, [c, v](T o) { return o == (T)c ? (T)v : o; }); }

// ---- loads, math ----------------------------------------------------------------------------
template <class T> inline T __ldg(const T* p) { return *p; }
#define EMU_MM(T) static inline T min(T a, T b) { return b < a ? b : a; } static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MM(int) EMU_MM(unsigned) EMU_MM(long) EMU_MM(long long) EMU_MM(unsigned long long) EMU_MM(unsigned long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }

static thread_local char emu_anchor;
EMU_NOSAN static void* emu_tls_touch() { return &emu_anchor; }   // forces + locates this thread's TLS block

// ---- launch glue: any kernel instantiation, void** args like cuLaunchKernel, plus its signature ----
template <class T> void emu_sig1(char*& s) {
  using U = std::remove_cv_t<std::remove_pointer_t<T>>;
  if (std::is_pointer_v<T>) { *s++ = std::is_const_v<std::remove_pointer_t<T>> ? 'c' : 'p'; }
  *s++ = std::is_same_v<U, bool> ? 'b' : std::is_floating_point_v<U> ? 'f' : std::is_unsigned_v<U> ? 'u' : std::is_integral_v<U> ? 'i' : 'V';
  unsigned n = sizeof(U), d = 1; while (d * 10 <= n) d *= 10; for (; d; d /= 10) *s++ = '0' + n / d % 10; *s++ = ' ';
}
template <class... A> struct emu_call {
  void (*f)(A...); void** a;
  template <size_t... I> EMU_NOSAN void go(std::index_sequence<I...>) { f(*(std::remove_reference_t<A>*)a[I]...); }
  EMU_NOSAN static void thunk(void* p) { ((emu_call*)p)->go(std::index_sequence_for<A...>{}); }
};
template <class... A> int emu_run(void (*f)(A...), void** a, const unsigned* g, const unsigned* b, size_t smem) {
  emu_call<A...> c{f, a}; return emu_launch(&emu_call<A...>::thunk, &c, g, b, smem, &emu_tls_touch);
}
template <class... A> void emu_sigstr(void (*)(A...), char* s) { (emu_sig1<A>(s), ...); *s = 0; }
#define EMU_EXPORT(i, ...) \
  extern "C" int emu_k##i(void** a, const unsigned* g, const unsigned* b, size_t s) { return emu_run(&__VA_ARGS__, a, g, b, s); } \
  extern "C" void emu_sig##i(char* s) { emu_sigstr(&__VA_ARGS__, s); }
