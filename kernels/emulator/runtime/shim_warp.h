// What the lanes of a warp do together.
#pragma once

#define EMU_INLINE static inline __attribute__((always_inline))

EMU_INLINE void __syncwarp(unsigned mask = ~0u) { emu_warp_sync(mask); }
#define __activemask() emu_active_mask()

// The value that `lane` gave, read where the checker doesn't look.
template <class T> EMU_UNCHECKED T emu_entry(const void* gathered, int lane) {
  T value;
  __builtin_memcpy(&value, (const char*)gathered + lane * sizeof(T), sizeof(T));
  return value;
}

template <class T> EMU_INLINE T emu_from_lane(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 64, "a shuffle moves at most 64 bytes");
  const void* all = emu_gather(emu_shuffle, mask, &value, sizeof(T));
  if (!(mask & emu_existing_lanes() & 1u << source)) emu_absent_lane(mask, source);
  return emu_entry<T>(all, source);
}
// A warp is cut into segments of `width` lanes; a source outside one's own segment is oneself.
template <class T> EMU_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  int lane = emu_lane();
  return emu_from_lane(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T> EMU_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = emu_lane(), source = lane - (int)delta;
  return emu_from_lane(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
template <class T> EMU_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = emu_lane(), source = lane + (int)delta;
  return emu_from_lane(mask, value, source <= (lane | (width - 1)) ? source : lane);
}
template <class T> EMU_INLINE T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  int lane = emu_lane(), source = lane ^ bits;
  return emu_from_lane(mask, value, source <= (lane | (width - 1)) ? source : lane);
}

template <class T, class Combine>
EMU_UNCHECKED T emu_combine(const void* all, unsigned mask, T start, Combine combine) {
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) start = combine(start, emu_entry<T>(all, lane), lane);
  return start;
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
  mask &= emu_existing_lanes();
  unsigned vote = predicate != 0;
  return emu_combine(emu_gather(emu_vote, mask, &vote, sizeof vote), mask, 0u,
                     [](unsigned sum, unsigned one, int lane) { return sum | one << lane; });
}
EMU_INLINE int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
EMU_INLINE int __all_sync(unsigned mask, int predicate) { return !__ballot_sync(mask, !predicate); }
template <class T> EMU_INLINE unsigned __match_any_sync(unsigned mask, T value) {
  mask &= emu_existing_lanes();
  const void* all = emu_gather(emu_match, mask, &value, sizeof value);
  unsigned equal = 0;
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1 && emu_entry<T>(all, lane) == value) equal |= 1u << lane;
  return equal;
}
template <class T> EMU_INLINE unsigned __match_all_sync(unsigned mask, T value, int* all_equal) {
  mask &= emu_existing_lanes();
  *all_equal = __match_any_sync(mask, value) == mask;
  return *all_equal ? mask : 0;
}

#define EMU_REDUCE(name, type, start, expression)                                          \
  EMU_INLINE type __reduce_##name##_sync(unsigned mask, type value) {                      \
    mask &= emu_existing_lanes();                                                             \
    return emu_combine<type>(emu_gather(emu_reduce, mask, &value, sizeof value), mask, start, \
                             [](type a, type b, int) -> type { return expression; });      \
  }
EMU_REDUCE(add, unsigned, 0, a + b)
EMU_REDUCE(add, int, 0, (int)((unsigned)a + (unsigned)b))
EMU_REDUCE(min, unsigned, ~0u, b < a ? b : a)
EMU_REDUCE(min, int, 0x7fffffff, b < a ? b : a)
EMU_REDUCE(max, unsigned, 0, a < b ? b : a)
EMU_REDUCE(max, int, -0x7fffffff - 1, a < b ? b : a)
EMU_REDUCE(and, unsigned, ~0u, a & b)
EMU_REDUCE(or, unsigned, 0, a | b)
EMU_REDUCE(xor, unsigned, 0, a ^ b)
#undef EMU_REDUCE
