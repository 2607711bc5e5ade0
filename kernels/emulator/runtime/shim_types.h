// CUDA's vector types and the variables that tell a thread who it is.
#pragma once

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define EMU_PAIR(type, name)                                  \
  struct __align__(2 * sizeof(type)) name##2 { type x, y; };  \
  static inline name##2 make_##name##2(type x, type y) { return {x, y}; }
#define EMU_TRIPLE(type, name)        \
  struct name##3 { type x, y, z; };   \
  static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }
#define EMU_QUADRUPLE(type, name)                                                               \
  struct __align__(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; };      \
  static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define EMU_VECTORS(type, name) EMU_PAIR(type, name) EMU_TRIPLE(type, name) EMU_QUADRUPLE(type, name)
EMU_PAIR(unsigned, uint) EMU_QUADRUPLE(unsigned, uint)  // uint3 is declared in emulator_api.h
EMU_VECTORS(signed char, char) EMU_VECTORS(unsigned char, uchar) EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort) EMU_VECTORS(int, int) EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong) EMU_VECTORS(float, float) EMU_VECTORS(double, double)
#undef EMU_VECTORS
#undef EMU_PAIR
#undef EMU_TRIPLE
#undef EMU_QUADRUPLE
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

#define threadIdx (emu_thread_index())
#define blockIdx (emu_block_index())
#define blockDim (emu_block_extent())
#define gridDim (emu_grid_extent())
static constexpr int warpSize = 32;
