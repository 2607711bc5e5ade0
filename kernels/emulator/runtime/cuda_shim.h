// CUDA C++ for g++: included before a .cu, it turns a kernel into a function that runs one thread of it on a CPU.
// NVRTC and nvcc never see this file. It includes no standard header, as compiling those would take longer than
// compiling a small kernel.
#pragma once
#define REFNET_EMULATED 1

#include "emulator_api.h"

// A kernel is compiled only if it is exported (EMU_EXPORT), however many others stand in the same file.
#define __global__ inline
#define __device__
#define __host__
#define __constant__ static
// One block runs in one OS thread at a time, so what a block shares is what that thread owns.
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// Code of the emulator itself: its accesses to memory aren't the kernel's, and aren't checked.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

#include "shim_types.h"
#include "shim_math.h"
#include "shim_memory.h"
#include "shim_warp.h"
#include "shim_atomics.h"
#include "shim_export.h"
