// What the emulator knows while a kernel runs.
//
// A block runs in one OS thread, its worker. A thread of the block is a function call on the stack of a fiber; only a
// thread that waits keeps its fiber, so a block whose threads never wait needs a single one. Checks run one block
// after another, in the calling OS thread.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <vector>

#include "emulator_api.h"

constexpr unsigned warp_size = 32, warpgroup_size = 128, gather_bytes = 64;

// A copy from global to shared memory that is under way.
struct AsyncCopy {
  void* target;
  const void* source;
  unsigned size, present, group;
};

// A fragment of sums that wgmma is computing; `values` arrive in `target` when the thread waits for `group`.
struct PendingSums {
  float* target;
  std::vector<float> values;
  unsigned group;
};
// A wgmma that this thread has issued and not waited for: the warpgroup's `number`-th.
struct PendingProduct {
  size_t number;
  unsigned group;
  uint32_t epoch;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char *low = nullptr, *high = nullptr;  // its stack
  uint64_t launch = 0;                   // the last one in which it ran; in another its stack starts afresh

  // The thread of the kernel that it is.
  unsigned thread = 0, warp = 0, lane = 0;
  uint3 index = {};
  const void* waits_at = nullptr;
  const char* waits_for = nullptr;
  unsigned atomics_since_wait = 0;
  unsigned accesses = 0;
  unsigned short proxy_fences = 0;

  std::vector<AsyncCopy> copies;
  unsigned copy_groups = 0;
  std::vector<PendingSums> sums;
  std::vector<PendingProduct> products;
  size_t products_issued = 0;
  unsigned product_groups = 0;
  bool sums_fenced = false;

  char gathered[warp_size * gather_bytes];  // what a collective of some lanes gave
};

struct Warp {
  Fiber* fibers[warp_size];  // of lanes that wait
  unsigned existing, exited;
  unsigned arrived;  // lanes that wait in a collective, each with its mask, kind and size
  bool alike;        // these agree in all three
  unsigned masks[warp_size];
  unsigned char kinds[warp_size], sizes[warp_size];
  unsigned full_collectives;
  char gathered[3][warp_size * gather_bytes];  // two for all lanes, by turns, and one for some

  // Vector clocks: lane i has synchronised with all that lane j did before its clock was seen[i][j].
  unsigned short clock[warp_size], seen[warp_size][warp_size];
};

// Operands of a wgmma, as its first thread read them, for the other threads of the warpgroup to use.
struct Operand {
  unsigned long long descriptor;
  bool transposed;
  std::vector<double> values;       // A's rows x depth, B's depth x columns
  std::vector<const char*> places;  // of each 16 bytes that were read
  std::vector<char> bytes;          // what stood there
};
struct WarpgroupProduct {
  int columns, depth;
  bool accumulate;
  Operand a, b;
  unsigned finished = 0;  // threads that waited for it
};
struct Warpgroup {
  std::deque<WarpgroupProduct> products;
  size_t first = 0;  // the number of the first of them
};

struct Launch;

struct Worker {
  Launch* launch = nullptr;
  Fiber* running = nullptr;
  void* scheduler = nullptr;  // the stack pointer of the OS thread's own stack
  uint64_t random = 0;

  // The block.
  long block = 0;
  uint3 block_index = {};
  unsigned threads = 0, started = 0, live = 0;
  uint3 next_index = {};  // of the thread that starts next, in natural order
  std::vector<unsigned> order;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  char *static_shared = nullptr, *dynamic_shared = nullptr;
  size_t dynamic_capacity = 0;

  // Its barrier.
  std::vector<Fiber*> at_barrier;
  int barrier_line = 0;
  emu_vote_kind vote_kind = emu_nothing;
  int votes = 0, vote_result = 0;

  std::vector<Fiber*> fibers, idle;
  std::vector<Fiber*> ready;  // from `first_ready` on
  size_t first_ready = 0;
};

struct Fault {
  char kind[16];
  char text[1024];
};

enum class Mode { fast, check, metrics };

struct Launch {
  emu_kernel* kernel;
  void** arguments;
  uint3 grid, block;
  size_t static_shared, dynamic_shared;
  ptrdiff_t anchor_offset;  // of the kernel's anchor from the start of its static shared memory
  uint64_t seed, number;
  bool checked;
  long blocks, stride, offset;  // the i-th block to run is (i * stride + offset) % blocks
  std::atomic<long> next_block;
  std::atomic<int> failed;
};

extern __thread Worker* worker;
extern Fault the_fault;

inline uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}
inline unsigned random_below(uint64_t& state, unsigned bound) {
  return (unsigned)((next_random(state) >> 32) * bound >> 32);
}

// A place in the kernel's source, as text that the Python side replaces by file and line.
#define PLACE "@%p@"
#define CALLER __builtin_extract_return_addr(__builtin_return_address(0))

// Keep the first fault of the launch, and never return to the thread that caused it.
[[noreturn, gnu::cold, gnu::format(printf, 2, 3)]] void fault(const char* kind, const char* format, ...);
// The same for what no single thread caused; the scheduler calls it, and it returns.
[[gnu::cold, gnu::format(printf, 2, 3)]] void fault_of_block(const char* kind, const char* format, ...);

// Where a number from emu_shared_address points, and how many bytes follow; null outside shared memory.
const char* from_shared_address(size_t address, size_t* bytes);

// Scheduling.
void wait_for(const char* what, const void* place);  // run others until somebody calls `wake`
void wake(Fiber* fiber);
void yield();

// The checker. These do nothing in fast mode, but asking first is cheaper.
void begin_checks(const Launch& launch);
void begin_block_checks();
void end_block_checks();
void next_epoch();  // all that the block did before happened before all that it does from now on
uint32_t present_epoch();
enum class Access { read, write, atomic, async_write };
void check_access(const void* address, size_t size, Access access, const void* place);
void check_pending(const void* address, size_t size);                                  // its value isn't there yet
void check_tile(const void* address, size_t size, uint32_t since, const void* place);  // wgmma's proxy reads it

// Metrics.
void count_access(const void* address, size_t size, Access access, bool shared, const void* place);
void count_block();
void begin_metrics();
extern bool metrics_wanted;
