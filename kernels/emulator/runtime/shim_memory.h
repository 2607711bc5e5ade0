// Memory: cached loads, fences, copies, and the barrier of a block.
#pragma once

#define REFNET_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emu_dynamic_shared())

// Which cache a load goes through makes no difference here.
#define EMU_LOAD(name) template <class T> static inline T name(const T* address) { return *address; }
EMU_LOAD(__ldg) EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldcs) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
#undef EMU_LOAD
#define EMU_STORE(name) template <class T> static inline void name(T* address, T value) { *address = value; }
EMU_STORE(__stwb) EMU_STORE(__stcg) EMU_STORE(__stcs) EMU_STORE(__stwt)
#undef EMU_STORE

// The emulator's memory is sequentially consistent within a block; a fence orders nothing that isn't ordered already.
static inline void __threadfence() { __asm__ volatile("" ::: "memory"); }
static inline void __threadfence_block() { __asm__ volatile("" ::: "memory"); }
static inline void __threadfence_system() { __asm__ volatile("" ::: "memory"); }

static inline emu_size __cvta_generic_to_shared(const void* pointer) { return emu_shared_address(pointer); }

static inline __attribute__((always_inline)) void* emu_memcpy(void* target, const void* source, emu_size size) {
  emu_check_range(source, size, false);
  emu_check_range(target, size, true);
  return __builtin_memcpy(target, source, size);
}
static inline __attribute__((always_inline)) void* emu_memset(void* target, int value, emu_size size) {
  emu_check_range(target, size, true);
  return __builtin_memset(target, value, size);
}
#define memcpy emu_memcpy
#define memset emu_memset

// Barriers are told apart by their line: optimisers copy calls, so one barrier may have several addresses.
#define __syncthreads() ((void)emu_block_barrier(__LINE__, emu_nothing, 0))
#define __syncthreads_or(vote) emu_block_barrier(__LINE__, emu_or, (vote) != 0)
#define __syncthreads_and(vote) emu_block_barrier(__LINE__, emu_and, (vote) != 0)
#define __syncthreads_count(vote) emu_block_barrier(__LINE__, emu_count, (vote) != 0)

static inline void __nanosleep(unsigned) { emu_yield(); }
#define __trap() emu_trap()
