// Arithmetic: C's mathematical functions, CUDA's overloads of them, and its intrinsics.
//
// Approximate intrinsics (__expf, __fdividef, rsqrtf) are computed exactly here: results on a GPU differ within the
// errors that CUDA documents. Products and sums are never fused, except by fma.
#pragma once

#define EMU_UNARY(name)                 \
  extern "C" double name(double);       \
  extern "C" float name##f(float);      \
  static inline float name(float x) { return name##f(x); }
#define EMU_BINARY(name)                     \
  extern "C" double name(double, double);    \
  extern "C" float name##f(float, float);    \
  static inline float name(float x, float y) { return name##f(x, y); }
EMU_UNARY(sqrt) EMU_UNARY(cbrt) EMU_UNARY(floor) EMU_UNARY(ceil) EMU_UNARY(trunc) EMU_UNARY(rint) EMU_UNARY(round)
EMU_UNARY(nearbyint) EMU_UNARY(fabs) EMU_UNARY(exp) EMU_UNARY(exp2) EMU_UNARY(expm1) EMU_UNARY(log) EMU_UNARY(log2)
EMU_UNARY(log10) EMU_UNARY(log1p) EMU_UNARY(sin) EMU_UNARY(cos) EMU_UNARY(tan) EMU_UNARY(tanh) EMU_UNARY(sinh)
EMU_UNARY(cosh) EMU_UNARY(atan) EMU_UNARY(asin) EMU_UNARY(acos) EMU_UNARY(erf) EMU_UNARY(erfc)
EMU_BINARY(fmin) EMU_BINARY(fmax) EMU_BINARY(pow) EMU_BINARY(fmod) EMU_BINARY(atan2) EMU_BINARY(copysign)
EMU_BINARY(hypot) EMU_BINARY(fdim) EMU_BINARY(nextafter) EMU_BINARY(remainder)
#undef EMU_UNARY
#undef EMU_BINARY
extern "C" double fma(double, double, double);
extern "C" float fmaf(float, float, float);
extern "C" double ldexp(double, int);
extern "C" float ldexpf(float, int);
extern "C" double scalbn(double, int);
extern "C" float scalbnf(float, int);
static inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
static inline float ldexp(float x, int n) { return ldexpf(x, n); }

static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
template <class T> static inline bool isnan(T x) { return __builtin_isnan(x); }
template <class T> static inline bool isinf(T x) { return __builtin_isinf(x); }
template <class T> static inline bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> static inline bool signbit(T x) { return __builtin_signbit(x); }
static inline float __saturatef(float x) { return x >= 0.0f ? (x <= 1.0f ? x : 1.0f) : 0.0f; }
static inline int abs(int x) { return x < 0 ? -x : x; }
static inline long abs(long x) { return x < 0 ? -x : x; }
static inline long long abs(long long x) { return x < 0 ? -x : x; }
static inline float abs(float x) { return fabsf(x); }
static inline double abs(double x) { return fabs(x); }

#define EMU_LEAST_GREATEST(type)                                          \
  static inline type min(type a, type b) { return b < a ? b : a; }        \
  static inline type max(type a, type b) { return a < b ? b : a; }
EMU_LEAST_GREATEST(int) EMU_LEAST_GREATEST(unsigned) EMU_LEAST_GREATEST(long) EMU_LEAST_GREATEST(unsigned long)
EMU_LEAST_GREATEST(long long) EMU_LEAST_GREATEST(unsigned long long)
#undef EMU_LEAST_GREATEST
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

// One rounding, to the nearest.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __expf(float x) { return expf(x); }
static inline float __exp2f(float x) { return exp2f(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __log2f(float x) { return log2f(x); }
static inline float __powf(float x, float y) { return powf(x, y); }
static inline float __sinf(float x) { return sinf(x); }
static inline float __cosf(float x) { return cosf(x); }

// The bits of a number.
template <class To, class From> static inline To emu_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "equal sizes");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }

// Conversions that say how they round; unlike a cast's, their result is defined for every number: saturated, 0 for NaN.
template <class To, class From> static inline To emu_saturated(From whole) {
  constexpr To low = To(-1) > To(0) ? To(0) : To(1ull << (8 * sizeof(To) - 1)), high = ~low;
  if (isnan(whole)) return 0;
  return whole <= (From)low ? low : whole >= (From)high ? high : (To)whole;
}
#define EMU_CONVERSIONS(from, type, name)                                                          \
  static inline type __##from##2##name##_rn(from x) { return emu_saturated<type>(rint(x)); }       \
  static inline type __##from##2##name##_rz(from x) { return emu_saturated<type>(trunc(x)); }      \
  static inline type __##from##2##name##_rd(from x) { return emu_saturated<type>(floor(x)); }      \
  static inline type __##from##2##name##_ru(from x) { return emu_saturated<type>(ceil(x)); }
EMU_CONVERSIONS(float, int, int) EMU_CONVERSIONS(float, unsigned, uint)
EMU_CONVERSIONS(float, long long, ll) EMU_CONVERSIONS(float, unsigned long long, ull)
EMU_CONVERSIONS(double, int, int) EMU_CONVERSIONS(double, unsigned, uint)
EMU_CONVERSIONS(double, long long, ll) EMU_CONVERSIONS(double, unsigned long long, ull)
#undef EMU_CONVERSIONS
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }
static inline float __ull2float_rn(unsigned long long x) { return (float)x; }
static inline double __ll2double_rn(long long x) { return (double)x; }
static inline float __double2float_rn(double x) { return (float)x; }

// Integers.
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  unsigned long long both = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    unsigned byte = both >> 8 * (selector >> 4 * i & 7) & 0xff;
    if (selector >> 4 * i & 8) byte = byte & 0x80 ? 0xff : 0;  // the byte's sign, copied
    result |= byte << 8 * i;
  }
  return result;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
