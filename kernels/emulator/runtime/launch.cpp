// Launches, blocks, and which thread runs next.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdarg>
#include <numeric>
#include <thread>

#include "state.h"

__thread Worker* worker;
Fault the_fault;

namespace {

std::vector<Worker*> workers;  // kept from launch to launch, for their stacks
uint64_t launches = 0;

void keep_fault(const char* kind, const char* format, va_list values, const Fiber* fiber) {
  int nobody = 0;
  if (!worker->launch->failed.compare_exchange_strong(nobody, 1)) return;
  snprintf(the_fault.kind, sizeof the_fault.kind, "%s", kind);
  int length = vsnprintf(the_fault.text, sizeof the_fault.text - 100, format, values);
  length = std::min(length, (int)sizeof the_fault.text - 101);
  const uint3& b = worker->block_index;
  char* end = the_fault.text + length;
  if (fiber) {
    const uint3& t = fiber->index;
    snprintf(end, 100, "; block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
  } else {
    snprintf(end, 100, "; block (%u,%u,%u)", b.x, b.y, b.z);
  }
}

bool failed() { return worker->launch->failed.load(std::memory_order_relaxed); }

// As instructions address shared memory, static begins at 0, and dynamic after it at a multiple of 1024.
size_t first_dynamic(const Launch& launch) { return (launch.static_shared + 1023) / 1024 * 1024; }

// ---- threads ----

void fiber_body();

// The index of the thread after this one.
void step(uint3& index, const uint3& extent) {
  if (++index.x < extent.x) return;
  index.x = 0;
  if (++index.y < extent.y) return;
  index.y = 0;
  index.z++;
}

// Make `fiber` the next thread of the block that hasn't started.
void become_next_thread(Fiber& fiber) {
  Worker& w = *worker;
  unsigned thread = w.started++;
  const uint3& extent = w.launch->block;
  if (w.order.empty()) {
    fiber.index = w.next_index;
    step(w.next_index, extent);
  } else {
    thread = w.order[thread];
    fiber.index = {thread % extent.x, thread / extent.x % extent.y, thread / extent.x / extent.y};
  }
  fiber.thread = thread;
  fiber.warp = thread / warp_size;
  fiber.lane = thread % warp_size;
  fiber.atomics_since_wait = 0;
  fiber.accesses = 0;
  fiber.proxy_fences = 0;
  fiber.copy_groups = 0;
  fiber.products_issued = 0;
  fiber.product_groups = 0;
  fiber.sums_fenced = false;
  w.warps[fiber.warp].fibers[fiber.lane] = &fiber;
}

Fiber* idle_fiber() {
  Worker& w = *worker;
  Fiber* fiber;
  if (w.idle.empty()) {
    fiber = make_fiber();
    if (!fiber) {
      fault_of_block("memory", "no memory for the stack of another thread");
      return nullptr;
    }
    w.fibers.push_back(fiber);
  } else {
    fiber = w.idle.back();
    w.idle.pop_back();
  }
  if (fiber->launch != w.launch->number) {
    reset_stack(*fiber, fiber_body, w.fibers.size() + (uintptr_t)fiber / 64);
    fiber->launch = w.launch->number;
    fiber->copies.clear();  // a fault may have left some
    fiber->sums.clear();
    fiber->products.clear();
  }
  return fiber;
}

// Who runs next: one that was woken or one that hasn't started; null if there is none, or the launch has failed.
Fiber* next_fiber() {
  Worker& w = *worker;
  if (failed()) return nullptr;
  size_t waiting = w.ready.size() - w.first_ready, fresh = w.threads - w.started;
  if (!waiting && !fresh) return nullptr;
  bool resume = waiting;
  if (w.launch->seed && waiting) {
    size_t choice = random_below(w.random, waiting + fresh);
    resume = choice < waiting;
    if (resume) std::swap(w.ready[w.first_ready], w.ready[w.first_ready + choice]);
  }
  if (resume) {
    Fiber* fiber = w.ready[w.first_ready++];
    if (w.first_ready == w.ready.size()) {
      w.ready.clear();
      w.first_ready = 0;
    }
    return fiber;
  }
  Fiber* fiber = idle_fiber();
  if (fiber) become_next_thread(*fiber);
  return fiber;
}

// Leave the running fiber for another, or for the scheduler if nobody can run.
void run_next() {
  Fiber* self = worker->running;
  Fiber* next = next_fiber();
  if (next == self) return;
  worker->running = next;
  emu_switch(&self->stack_pointer, next ? next->stack_pointer : worker->scheduler);
}

void exit_thread(Fiber& fiber) {
  Worker& w = *worker;
  if (!fiber.copies.empty()) fault("initcheck", "the thread ends while copies are under way that it never waited for");
  if (!fiber.sums.empty()) fault("initcheck", "the thread ends while its wgmma is under way");
  Warp& warp = w.warps[fiber.warp];
  warp.exited |= 1u << fiber.lane;
  warp.fibers[fiber.lane] = nullptr;
  for (unsigned waiting = warp.arrived; waiting; waiting &= waiting - 1) {
    unsigned lane = __builtin_ctz(waiting);
    const Fiber& other = *warp.fibers[lane];
    if (warp.masks[lane] >> fiber.lane & 1)
      fault("synccheck", "lane %u ends, but lane %u waits for it in %s at " PLACE, fiber.lane, lane, other.waits_for,
            other.waits_at);
  }
  w.live--;
  if (!w.at_barrier.empty() && w.at_barrier.size() == w.live) {
    const Fiber& other = *w.at_barrier[0];
    const uint3& t = other.index;
    fault("synccheck", "the thread ends without reaching the __syncthreads at " PLACE " where thread (%u,%u,%u) waits",
          other.waits_at, t.x, t.y, t.z);
  }
}

// Run threads, one after another, until one of them waits.
void fiber_body() {
  for (;;) {
    Fiber* fiber = worker->running;
    worker->launch->kernel->call(worker->launch->arguments);
    exit_thread(*fiber);
    Worker& w = *worker;
    if (w.started < w.threads && w.ready.empty() && !failed()) {  // as run_next would, after a detour
      become_next_thread(*fiber);
      continue;
    }
    w.idle.push_back(fiber);
    run_next();
  }
}

// ---- blocks ----

// Nobody can run, and some threads haven't ended.
void report_deadlock() {
  Worker& w = *worker;
  char text[600] = "";
  int length = 0, groups = 0;
  const char* last = nullptr;
  for (const Warp& warp : w.warps)
    for (unsigned lane = 0; lane < warp_size && groups < 4; lane++) {
      const Fiber* fiber = warp.fibers[lane];
      if (!fiber || (last == (const char*)fiber->waits_at)) continue;
      last = (const char*)fiber->waits_at;
      const uint3& t = fiber->index;
      length += snprintf(text + length, sizeof text - length, "%s thread (%u,%u,%u) waits in %s at " PLACE,
                         groups++ ? "," : "", t.x, t.y, t.z, fiber->waits_for, fiber->waits_at);
    }
  fault_of_block("synccheck", "deadlock:%s", text);
}

void start_warps() {
  Worker& w = *worker;
  w.warps.resize((w.threads + warp_size - 1) / warp_size);
  for (size_t i = 0; i < w.warps.size(); i++) {
    Warp& warp = w.warps[i];
    unsigned lanes = std::min(warp_size, w.threads - (unsigned)i * warp_size);
    warp.existing = lanes == warp_size ? ~0u : (1u << lanes) - 1;
    warp.exited = warp.arrived = warp.full_collectives = 0;
    memset(warp.fibers, 0, sizeof warp.fibers);
    if (w.launch->checked) {
      for (unsigned lane = 0; lane < warp_size; lane++) warp.clock[lane] = 1;
      memset(warp.seen, 0, sizeof warp.seen);
    }
  }
}

void run_block(long block) {
  Worker& w = *worker;
  const Launch& launch = *w.launch;
  const uint3& grid = launch.grid;
  w.block = block;
  w.block_index = {(unsigned)(block % grid.x), (unsigned)(block / grid.x % grid.y),
                   (unsigned)(block / grid.x / grid.y)};
  w.threads = w.live = launch.block.x * launch.block.y * launch.block.z;
  w.started = 0;
  w.next_index = {0, 0, 0};
  w.ready.clear();
  w.first_ready = 0;
  w.at_barrier.clear();
  w.warpgroups.clear();
  w.warpgroups.resize(w.threads / warpgroup_size);
  start_warps();
  if (launch.seed) {
    w.random = launch.seed * 0xd1342543de82ef95ull + (uint64_t)block;
    w.order.resize(w.threads);
    std::iota(w.order.begin(), w.order.end(), 0u);
    for (unsigned i = w.threads; i > 1; i--) std::swap(w.order[i - 1], w.order[random_below(w.random, i)]);
  } else {
    w.order.clear();
  }
  // What nobody wrote is NaN, or -1.
  memset(w.static_shared, 0xff, launch.static_shared);
  if (launch.dynamic_shared) memset(w.dynamic_shared, 0xff, launch.dynamic_shared);
  if (launch.checked) begin_block_checks();
  worker->running = next_fiber();
  if (worker->running) emu_switch(&w.scheduler, w.running->stack_pointer);
  if (w.live && !failed()) report_deadlock();
  if (launch.checked) end_block_checks();
}

void run_blocks(Worker& own, Launch& launch) {
  worker = &own;
  own.launch = &launch;
  own.static_shared = (char*)launch.kernel->shared_anchor() - launch.anchor_offset;
  if (own.dynamic_capacity < launch.dynamic_shared) {
    free(own.dynamic_shared);
    own.dynamic_capacity = (launch.dynamic_shared + 1023) / 1024 * 1024;
    own.dynamic_shared = (char*)aligned_alloc(1024, own.dynamic_capacity);
  }
  own.idle = own.fibers;
  std::reverse(own.idle.begin(), own.idle.end());
  for (long i; (i = launch.next_block++) < launch.blocks && !failed();)
    run_block((long)(((__int128)i * launch.stride + launch.offset) % launch.blocks));
  worker = nullptr;
}

// With a seed blocks run in another order: multiply by a number that has no divisor in common with theirs.
void order_blocks(Launch& launch) {
  launch.stride = 1;
  launch.offset = 0;
  if (!launch.seed || launch.blocks == 1) return;
  uint64_t random = launch.seed;
  launch.offset = (long)(next_random(random) % (uint64_t)launch.blocks);
  do launch.stride = 1 + (long)(next_random(random) % (uint64_t)launch.blocks);
  while (std::gcd(launch.stride, launch.blocks) != 1);
}

}  // namespace

void fault(const char* kind, const char* format, ...) {
  va_list values;
  va_start(values, format);
  keep_fault(kind, format, values, worker->running);
  va_end(values);
  emu_switch(&worker->running->stack_pointer, worker->scheduler);
  __builtin_unreachable();
}

void fault_of_block(const char* kind, const char* format, ...) {
  va_list values;
  va_start(values, format);
  keep_fault(kind, format, values, nullptr);
  va_end(values);
}

void wait_for(const char* what, const void* place) {
  Fiber* self = worker->running;
  self->waits_for = what;
  self->waits_at = place;
  self->atomics_since_wait = 0;
  run_next();
}

void wake(Fiber* fiber) { worker->ready.push_back(fiber); }

const char* from_shared_address(size_t address, size_t* bytes) {
  const Launch& launch = *worker->launch;
  size_t first = first_dynamic(launch);
  bool dynamic = address >= first;
  size_t offset = dynamic ? address - first : address;
  size_t size = dynamic ? launch.dynamic_shared : launch.static_shared;
  if (offset >= size) return nullptr;
  *bytes = size - offset;
  return (dynamic ? worker->dynamic_shared : worker->static_shared) + offset;
}

void yield() {
  wake(worker->running);
  run_next();
}

extern "C" {

uint3 emu_thread_index() { return worker->running->index; }
uint3 emu_block_index() { return worker->block_index; }
uint3 emu_block_extent() { return worker->launch->block; }
uint3 emu_grid_extent() { return worker->launch->grid; }
unsigned emu_lane() { return worker->running->lane; }
void* emu_dynamic_shared() { return worker->dynamic_shared; }
void emu_yield() { yield(); }
void emu_trap() { fault("trap", "__trap at " PLACE, CALLER); }

emu_size emu_shared_address(const void* pointer) {
  const Launch& launch = *worker->launch;
  const char* p = (const char*)pointer;
  if (p >= worker->dynamic_shared && p <= worker->dynamic_shared + launch.dynamic_shared)
    return first_dynamic(launch) + (p - worker->dynamic_shared);
  if (p >= worker->static_shared && p <= worker->static_shared + launch.static_shared) return p - worker->static_shared;
  fault("memcheck", "%p isn't in shared memory, at " PLACE, pointer, CALLER);
}

// What the loader knows of the shared object that holds a kernel.
struct EmuModule {
  uint64_t low, high;      // its image in memory: code and constants
  uint64_t static_shared;  // bytes
  int64_t anchor_offset;
};

// Fill `module` for the kernel's shared object.
void emu_find_module(const emu_kernel* kernel, EmuModule* module) {
  struct Search {
    const char *kernel, *anchor;
    EmuModule* module;
  } search{(const char*)kernel, (const char*)kernel->shared_anchor(), module};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Search& s = *(Search*)data;
        uint64_t low = ~0ull, high = 0, local = 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_TLS) local = header.p_memsz;
          if (header.p_type != PT_LOAD) continue;
          low = std::min<uint64_t>(low, info->dlpi_addr + header.p_vaddr);
          high = std::max<uint64_t>(high, info->dlpi_addr + header.p_vaddr + header.p_memsz);
        }
        if ((uint64_t)s.kernel < low || (uint64_t)s.kernel >= high) return 0;
        *s.module = {low, high, local, s.anchor - (const char*)info->dlpi_tls_data};
        return 1;
      },
      &search);
}

struct EmuRequest {
  emu_kernel* kernel;
  const EmuModule* module;
  void** arguments;
  unsigned grid[3], block[3];
  uint64_t dynamic_shared, seed;
  unsigned workers, mode;
};

// Run a kernel; 0 if nothing went wrong, otherwise emu_fault_kind and emu_fault_text say what did.
int emu_launch(const EmuRequest* request) {
  static_assert(sizeof(Fault) == 16 + 1024, "the Python side reads it");
  const unsigned *g = request->grid, *b = request->block;
  Launch launch{};
  launch.kernel = request->kernel;
  launch.arguments = request->arguments;
  launch.grid = {g[0], g[1], g[2]};
  launch.block = {b[0], b[1], b[2]};
  launch.static_shared = request->module->static_shared;
  launch.dynamic_shared = request->dynamic_shared;
  launch.anchor_offset = request->module->anchor_offset;
  launch.seed = request->seed;
  launch.number = ++launches;
  launch.checked = request->mode != 0;
  launch.blocks = (long)g[0] * g[1] * g[2];
  metrics_wanted = request->mode == (unsigned)Mode::metrics;
  order_blocks(launch);

  // An OS thread is worth starting for some thousand threads.
  long work = launch.blocks * (long)(b[0] * b[1] * b[2]);
  size_t count = launch.checked ? 1 : std::max(1l, std::min({(long)request->workers, launch.blocks, work / 2048}));
  while (workers.size() < count) workers.push_back(new Worker);
  if (launch.checked) begin_checks(launch);
  std::vector<std::thread> others;
  for (size_t i = 1; i < count; i++) others.emplace_back(run_blocks, std::ref(*workers[i]), std::ref(launch));
  run_blocks(*workers[0], launch);
  for (std::thread& other : others) other.join();
  return launch.failed;
}

const char* emu_fault_kind() { return the_fault.kind; }
const char* emu_fault_text() { return the_fault.text; }

}  // extern "C"
