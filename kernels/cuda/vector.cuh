// What a thread loads or stores at once: W neighbouring numbers, 16 bytes where channels and addresses allow it.
#pragma once

#include "common.cuh"

namespace refnet {

// W numbers that one instruction moves; their address is a multiple of their size.
template <class T, int W>
struct alignas(W * sizeof(T)) Vector {
  T at[W];
};

// How many numbers make 16 bytes, the most that an instruction moves.
template <class T>
constexpr int WIDEST = 16 / (int)sizeof(T);

template <int W, class T>
__device__ __forceinline__ Vector<T, W> load(const T* from) {
  return *reinterpret_cast<const Vector<T, W>*>(from);
}

template <int W, class T>
__device__ __forceinline__ void store(T* to, const Vector<T, W>& value) {
  *reinterpret_cast<Vector<T, W>*>(to) = value;
}

}  // namespace refnet
