// What a kernel, compiled by g++, calls in the emulator's runtime. Both sides include this file; it needs no other.
//
// Where a call may fault, the runtime takes the place in the source from its own return address, which the Python
// side turns into file and line. These calls are therefore never wrapped in a function that isn't inlined.
#pragma once

typedef decltype(sizeof(0)) emu_size;

struct uint3 {
  unsigned x, y, z;
};

// One parameter of a kernel as its C++ type has it.
struct emu_parameter {
  char kind;      // b bool, i signed, u unsigned, f floating point, V anything else
  char pointer;   // 0 a value, 'p' a pointer to what `kind` says, 'c' a pointer to const
  unsigned size;  // of the value, or of what the pointer points to
};

// One instantiation of a kernel, exported by its shared object.
struct emu_kernel {
  void (*call)(void** arguments);  // run one thread
  void* (*shared_anchor)();        // an address within the calling OS thread's static shared memory
  const emu_parameter* parameters;
  unsigned parameter_count;
  unsigned char shared_grain[2];  // the checker's: log2 of the narrowest access to static and dynamic shared memory
};

// What the lanes of a warp do together; all lanes of one mask must do the same.
enum emu_collective { emu_shuffle, emu_vote, emu_match, emu_reduce, emu_matrix, emu_warp_barrier };
// What __syncthreads returns.
enum emu_vote_kind { emu_nothing, emu_or, emu_and, emu_count };

extern "C" {
// Who is running. Constant within one thread of a kernel, so one call serves a whole function.
uint3 emu_thread_index() __attribute__((const));
uint3 emu_block_index() __attribute__((const));
uint3 emu_block_extent() __attribute__((const));
uint3 emu_grid_extent() __attribute__((const));
unsigned emu_lane() __attribute__((const));
void* emu_dynamic_shared() __attribute__((const));

// Barriers and warps.
int emu_block_barrier(int line, emu_vote_kind kind, int vote);
void emu_warp_sync(unsigned mask);
// Gives `value` to the other lanes; returns 32 entries of `size` bytes (at most 64), of which only those of lanes in
// `mask` mean anything, valid until this lane's next collective.
const void* emu_gather(emu_collective kind, unsigned mask, const void* value, unsigned size);
void emu_absent_lane(unsigned mask, int lane);         // faults: a lane outside the mask is read
unsigned emu_existing_lanes() __attribute__((const));  // fewer than 32 in the last warp of some blocks
unsigned emu_active_mask();                            // of which some may have ended
void emu_yield();
[[noreturn]] void emu_trap();

// The checker.
void emu_check_atomic(void* address, unsigned size);
void emu_check_range(const void* address, emu_size size, bool write);

// Shared memory as an instruction addresses it: a number of 18 bits.
emu_size emu_shared_address(const void* pointer);

// cp.async: `present` bytes of `source` and zeros up to `size` arrive in `target` when the thread waits.
void emu_copy_async(void* target, const void* source, unsigned size, unsigned present);
void emu_copy_commit();
void emu_copy_wait(unsigned pending);

// Tensor cores; fragments are laid out as tensor_core.cpp and warpgroup.cpp say.
void emu_mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b);
void emu_mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b);
void emu_ldmatrix(unsigned* out, const void* row, int matrices, bool transposed);
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(unsigned pending);
// D (64 x columns) = A B + (accumulate ? D : 0); A and B^T are K-major unless transposed (bfloat16 only).
void emu_wgmma_tf32(float* d, int columns, unsigned long long a, unsigned long long b, bool accumulate);
void emu_wgmma_bf16(float* d, int columns, unsigned long long a, unsigned long long b, bool accumulate,
                    bool transpose_a, bool transpose_b);
void emu_fence_proxy_async();
}
