// Atomic operations: bounds are checked, and they don't race with one another.
#pragma once

template <class T, class Change> EMU_UNCHECKED T emu_exchange_atomically(T* address, Change change) {
  T old, changed;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do changed = change(old);
  while (!__atomic_compare_exchange(address, &old, &changed, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  return old;
}
template <class T, class Change> EMU_INLINE T emu_atomic(T* address, Change change) {
  emu_check_atomic(address, sizeof(T));
  return emu_exchange_atomically(address, change);
}
// The type to which a value is converted is the address's alone.
template <class T> struct emu_same { typedef T type; };
#define EMU_ATOMIC(name, expression)                                                              \
  template <class T> EMU_INLINE T name(T* address, typename emu_same<T>::type value) {            \
    return emu_atomic(address, [value](T old) -> T { return expression; });                       \
  }
EMU_ATOMIC(atomicExch, value)
EMU_ATOMIC(atomicAnd, old & value)
EMU_ATOMIC(atomicOr, old | value)
EMU_ATOMIC(atomicXor, old ^ value)
EMU_ATOMIC(atomicMin, value < old ? value : old)
EMU_ATOMIC(atomicMax, old < value ? value : old)
EMU_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMU_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef EMU_ATOMIC
// Integers wrap around, on a GPU as in emu_sum.
template <class T> struct emu_adder { static T sum(T a, T b) { return a + b; } };
template <> struct emu_adder<int> { static int sum(int a, int b) { return (int)((unsigned)a + (unsigned)b); } };
template <> struct emu_adder<long long> {
  static long long sum(long long a, long long b) { return (long long)((unsigned long long)a + (unsigned long long)b); }
};
template <class T> EMU_INLINE T atomicAdd(T* address, typename emu_same<T>::type value) {
  return emu_atomic(address, [value](T old) { return emu_adder<T>::sum(old, value); });
}
template <class T> EMU_INLINE T atomicSub(T* address, typename emu_same<T>::type value) {
  return emu_atomic(address, [value](T old) { return emu_adder<T>::sum(old, (T)(0 - value)); });
}
template <class T>
EMU_INLINE T atomicCAS(T* address, typename emu_same<T>::type compare, typename emu_same<T>::type value) {
  return emu_atomic(address, [compare, value](T old) { return old == compare ? value : old; });
}
// Vectors (sm_90): each component on its own is atomic, the vector isn't; it must be aligned as a whole.
static inline float2 atomicAdd(float2* address, float2 value) {
  emu_check_atomic(address, sizeof *address);
  auto add = [](float* to, float v) { return emu_exchange_atomically(to, [v](float old) { return old + v; }); };
  return {add(&address->x, value.x), add(&address->y, value.y)};
}
static inline float4 atomicAdd(float4* address, float4 value) {
  emu_check_atomic(address, sizeof *address);
  auto add = [](float* to, float v) { return emu_exchange_atomically(to, [v](float old) { return old + v; }); };
  return {add(&address->x, value.x), add(&address->y, value.y), add(&address->z, value.z), add(&address->w, value.w)};
}
#define atomicAdd_block atomicAdd
#define atomicMax_block atomicMax
#define atomicMin_block atomicMin
