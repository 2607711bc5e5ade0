// The checker's shadow memory: for every few bytes that a kernel may touch, who wrote and who read them last.
//
// Order within a launch is counted in epochs. One begins with each block and with each __syncthreads, and as checked
// blocks run one after another, an epoch belongs to one block. Two accesses are ordered if they are of one thread, or
// of one block in different epochs, or of one warp with a __syncwarp of both lanes in between (the warp's vector
// clocks know). Accesses of two blocks are never ordered. Two accesses that aren't ordered race if one of them writes,
// unless both are atomic.
//
// Epochs count on from launch to launch, so that what older launches left in shadow memory is known as such, and
// needn't be cleared.
#include <sys/mman.h>

#include <algorithm>

#include "state.h"

namespace {

struct Visit {
  uint32_t epoch;
  uint16_t thread;  // plus one; 0: nobody
  uint16_t clock;   // of the lane, in its warp
};

struct Cell {
  Visit write, read, earlier_read;
  uint32_t initialised;   // the epoch in which it was
  uint16_t atomic;        // the last write was atomic: 0 no, otherwise a thread, plus one, that also wrote so
  uint16_t proxy_fences;  // of the writer, when it wrote
};
constexpr uint16_t another_block = 0xffff;

struct Region {
  uintptr_t low, high;
  Cell* cells;
  unsigned grain;  // log2 of the bytes of a cell
  bool shared, initialised, constant;
  char name[48];
};

struct Pages {  // zero until written
  void* start = nullptr;
  size_t size = 0;
  void* reserve(size_t wanted) {
    if (wanted <= size) return start;
    release();
    start = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
      start = nullptr;
      return nullptr;
    }
    size = wanted;
    return start;
  }
  void release() {
    if (start) munmap(start, size);
    start = nullptr;
    size = 0;
  }
};

constexpr size_t kept_bytes = 256 << 20;  // of shadow memory, between launches
constexpr uint32_t last_epoch = 0xf0000000u;
// A thread that does more than this waits for what never comes: another block, as checked ones run one by one.
constexpr unsigned most_accesses = 1u << 28, most_atomics = 1u << 22;  // the latter without waiting in between

struct Shadow {
  std::vector<Region> regions;              // static and dynamic shared memory, then buffers
  size_t hints[64];                         // by place: the region that was last touched from there
  Pages pages;
  std::vector<Pages> split;  // of regions that turned out to need smaller cells
  uint32_t epoch = 1, launch_first = 1, block_first = 1;
  std::vector<std::pair<uint32_t, long>> blocks;  // the first epoch of each, ascending
  uintptr_t image_low = 0, image_high = 0;
};
Shadow shadow;

size_t cell_count(const Region& r) { return ((r.high - r.low) >> r.grain) + 1; }

Region region_of(uintptr_t low, size_t size, unsigned grain, const char* name) {
  Region r{low, low + size, nullptr, grain, false, false, false, ""};
  snprintf(r.name, sizeof r.name, "%s", name);
  return r;
}

// Cells become cells for fewer bytes each: somebody touches less than one.
void split(Region& r, unsigned grain, const void* place) {
  size_t count = cell_count(r);
  unsigned parts = 1u << (r.grain - grain);
  Pages pages;
  Cell* cells = (Cell*)pages.reserve((count * parts + parts) * sizeof(Cell));
  if (!cells) fault("memory", "no shadow memory for %s at " PLACE, r.name, place);
  for (size_t i = 0; i < count; i++)
    if (r.cells[i].initialised >= shadow.launch_first || r.cells[i].write.epoch >= shadow.launch_first ||
        r.cells[i].read.epoch >= shadow.launch_first)
      for (unsigned part = 0; part < parts; part++) cells[i * parts + part] = r.cells[i];
  r.cells = cells;
  r.grain = grain;
  shadow.split.push_back(pages);
  if (r.shared) worker->launch->kernel->shared_grain[&r - &shadow.regions[0]] = grain;
}

// ---- order ----

bool same_thread(const Visit& a, const Visit& b) { return a.thread == b.thread && a.epoch >= shadow.block_first; }

// `old` was made by a block, or an epoch, that isn't ordered with the present.
bool current(const Visit& old, bool shared) {
  if (!old.thread || old.epoch < shadow.launch_first) return false;
  return old.epoch == shadow.epoch || (!shared && old.epoch < shadow.block_first);
}

bool unordered(const Visit& old, const Visit& now, bool shared) {
  if (!current(old, shared)) return false;
  if (old.epoch < shadow.block_first) return true;
  if (old.thread == now.thread) return false;
  unsigned other = old.thread - 1u, self = now.thread - 1u;
  if (other / warp_size != self / warp_size) return true;
  return worker->warps[self / warp_size].seen[self % warp_size][other % warp_size] < old.clock;
}

// Two past reads stand for all: the last one, and if there is one of another warp or block, that one.
void note_read(Cell& cell, const Visit& now, bool shared) {
  if (same_thread(cell.read, now)) {
    cell.read = now;
    return;
  }
  bool near =
      cell.read.epoch >= shadow.block_first && (cell.read.thread - 1u) / warp_size == (now.thread - 1u) / warp_size;
  if (!(near && current(cell.earlier_read, shared))) cell.earlier_read = cell.read;
  cell.read = now;
}

void note_write(Cell& cell, const Visit& now, Access access, bool shared) {
  if (access != Access::atomic) {
    cell.atomic = 0;
  } else {
    bool also = cell.atomic && current(cell.write, shared) && !same_thread(cell.write, now);
    bool still = cell.atomic && cell.atomic != cell.write.thread && current(cell.write, shared);
    if (also) cell.atomic = cell.write.epoch < shadow.block_first ? another_block : cell.write.thread;
    else if (!still) cell.atomic = now.thread;
  }
  cell.write = now;
  cell.initialised = now.epoch;
  cell.proxy_fences = worker->running->proxy_fences;
}

// ---- messages ----

struct Who {
  char text[80];
};
Who who(const Visit& visit) {
  Who result;
  uint3 extent = worker->launch->block, grid = worker->launch->grid;
  unsigned t = visit.thread - 1u;
  auto after = std::upper_bound(shadow.blocks.begin(), shadow.blocks.end(), std::make_pair(visit.epoch, (long)1 << 62));
  long b = (after - 1)->second;
  snprintf(result.text, sizeof result.text, "thread (%u,%u,%u) of block (%ld,%ld,%ld)", t % extent.x,
           t / extent.x % extent.y, t / extent.x / extent.y, b % (long)grid.x, b / grid.x % grid.y,
           b / grid.x / grid.y);
  return result;
}

const char* verb(Access access) {
  return access == Access::read ? "read" : access == Access::atomic ? "atomic operation" : "write";
}

[[noreturn, gnu::cold]] void report_race(const Region& r, size_t cell, Access access, const char* other_verb,
                                         const Visit& other, const void* place) {
  bool block = other.epoch >= shadow.block_first;
  bool warp = block && (other.thread - 1u) / warp_size == worker->running->warp;
  fault("racecheck", "%s of byte %zu of %s at " PLACE " races with a %s by %s: %s", verb(access), cell << r.grain,
        r.name, place, other_verb, who(other).text,
        warp    ? "no __syncwarp or __syncthreads in between"
        : block ? "no __syncthreads in between"
                : "blocks aren't ordered");
}

[[noreturn, gnu::cold]] void report_outside(uintptr_t address, size_t size, Access access, const void* place) {
  const Region* nearest = nullptr;
  uintptr_t least = ~(uintptr_t)0;
  for (const Region& r : shadow.regions) {
    uintptr_t distance = address < r.low ? r.low - address : address - r.high;
    if (distance < least) least = distance, nearest = &r;
  }
  if (!nearest || least > (1u << 30))
    fault("memcheck", "%s of %zu bytes at %p, far from all of the kernel's arrays, at " PLACE, verb(access), size,
          (void*)address, place);
  fault("memcheck", "%s of %zu bytes, %zu bytes %s %s, at " PLACE, verb(access), size, (size_t)least,
        address < nearest->low ? "before" : "past the end of", nearest->name, place);
}

// ---- finding what is accessed ----

Region* find_region(uintptr_t address, const void* place) {
  size_t& hint = shadow.hints[(uintptr_t)place / 4 % 64];
  if (hint < shadow.regions.size()) {
    Region& r = shadow.regions[hint];
    if (address - r.low < r.high - r.low) return &r;
  }
  for (size_t i = 0; i < shadow.regions.size(); i++) {
    Region& r = shadow.regions[i];
    if (address - r.low < r.high - r.low) {
      hint = i;
      return &r;
    }
  }
  return nullptr;
}

bool on_own_stack(uintptr_t address, const Fiber& fiber) {
  return address - (uintptr_t)fiber.low < (uintptr_t)(fiber.high - fiber.low);
}

[[noreturn, gnu::cold]] void report_early_sum(const void* place) {
  fault("initcheck", "wgmma's sums are touched at " PLACE " before wgmma.wait_group", place);
}

void check_pending_sums(uintptr_t address, size_t size, const Fiber& fiber, const void* place) {
  for (const PendingSums& sums : fiber.sums)
    if (address < (uintptr_t)(sums.target + sums.values.size()) && address + size > (uintptr_t)sums.target)
      report_early_sum(place);
}

template <class Do>
void for_cells(Region& r, uintptr_t address, size_t size, Do action) {
  size_t first = (address - r.low) >> r.grain, last = (address - r.low + size - 1) >> r.grain;
  for (size_t i = first; i <= last; i++) action(r.cells[i], i);
}

bool written(const Region& r, const Cell& cell) {
  return r.initialised || cell.initialised >= (r.shared ? shadow.block_first : shadow.launch_first);
}

}  // namespace

uint32_t present_epoch() { return shadow.epoch; }

void next_epoch() { shadow.epoch++; }

void begin_checks(const Launch& launch) {
  if (shadow.epoch > last_epoch) {
    shadow.pages.release();
    shadow.epoch = 1;
  }
  shadow.launch_first = ++shadow.epoch;
  shadow.blocks.clear();
  size_t cells = 0;
  for (Region& r : shadow.regions) cells += cell_count(r);
  unsigned char* grain = launch.kernel->shared_grain;
  cells += (launch.static_shared >> grain[0]) + (launch.dynamic_shared >> grain[1]) + 2;
  size_t wanted = cells * sizeof(Cell);
  if (wanted > shadow.pages.size) shadow.pages.reserve(std::max<size_t>(wanted * 2, 1 << 20));
  begin_metrics();
}

// Where shared memory lies is known once the worker has begun, so the first block lays out the cells.
void begin_block_checks() {
  const Launch& launch = *worker->launch;
  shadow.block_first = ++shadow.epoch;
  shadow.blocks.push_back({shadow.epoch, worker->block});
  if (shadow.blocks.size() > 1) return;
  if (!shadow.pages.start) return fault_of_block("memory", "no shadow memory");
  unsigned char* grain = launch.kernel->shared_grain;
  shadow.regions[0] = region_of((uintptr_t)worker->static_shared, launch.static_shared, grain[0], "__shared__ memory");
  shadow.regions[1] =
      region_of((uintptr_t)worker->dynamic_shared, launch.dynamic_shared, grain[1], "dynamic shared memory");
  shadow.regions[0].shared = shadow.regions[1].shared = true;
  Cell* cells = (Cell*)shadow.pages.start;
  for (Region& r : shadow.regions) {
    r.cells = cells;
    cells += cell_count(r);
  }
}

void end_block_checks() {
  if (metrics_wanted) count_block();
}

void check_access(const void* pointer, size_t size, Access access, const void* place) {
  Worker* w = worker;
  if (!w || !w->launch->checked || !size) return;
  Fiber& fiber = *w->running;
  uintptr_t address = (uintptr_t)pointer;
  if (on_own_stack(address, fiber)) {
    if (!fiber.sums.empty()) check_pending_sums(address, size, fiber, place);
    return;
  }
  if (++fiber.accesses == most_accesses)
    fault("synccheck", "%u accesses by one thread: does the loop at " PLACE " wait for another block?", most_accesses,
          place);
  Region* region = find_region(address, place);
  if (!region) {
    if (access == Access::read && address >= shadow.image_low && address + size <= shadow.image_high) return;
    report_outside(address, size, access, place);
  }
  Region& r = *region;
  if (address + size > r.high)
    fault("memcheck", "%s of %zu bytes, the last %zu past the end of %s, at " PLACE, verb(access), size,
          (size_t)(address + size - r.high), r.name, place);
  if (access != Access::read && r.constant)
    fault("memcheck", "%s in %s, which is const, at " PLACE, verb(access), r.name, place);
  if (size <= 16 && address & (size - 1) && (size & (size - 1)) == 0)
    fault("memcheck", "misaligned %s of %zu bytes at byte %zu of %s at " PLACE, verb(access), size,
          (size_t)(address - r.low), r.name, place);
  while (r.grain && ((address - r.low) & ((1u << r.grain) - 1) || size & ((1u << r.grain) - 1)))
    split(r, r.grain - 1, place);

  const Warp& warp = w->warps[fiber.warp];
  Visit now{shadow.epoch, (uint16_t)(fiber.thread + 1), warp.clock[fiber.lane]};
  bool reads = access == Access::read || access == Access::atomic, writes = access != Access::read;
  for_cells(r, address, size, [&](Cell& cell, size_t i) {
    if (reads && !written(r, cell))
      fault("initcheck", "%s of byte %zu of %s, which nobody has written, at " PLACE, verb(access), i << r.grain,
            r.name, place);
    if (!(access == Access::atomic && cell.atomic)) {
      if (unordered(cell.write, now, r.shared)) report_race(r, i, access, "write", cell.write, place);
      if (cell.atomic && cell.atomic != cell.write.thread && current(cell.write, r.shared)) {
        Visit other = cell.write;
        if (cell.atomic != another_block) other.thread = cell.atomic;
        if (cell.atomic == another_block || unordered(other, now, r.shared))
          report_race(r, i, access, "atomic operation", other, place);
      }
    }
    if (!writes) return note_read(cell, now, r.shared);
    if (unordered(cell.read, now, r.shared)) report_race(r, i, access, "read", cell.read, place);
    if (unordered(cell.earlier_read, now, r.shared)) report_race(r, i, access, "read", cell.earlier_read, place);
    note_write(cell, now, access, r.shared);
  });
  if (metrics_wanted) count_access(pointer, size, access, r.shared, place);
}

void check_pending(const void* pointer, size_t size) {
  uintptr_t address = (uintptr_t)pointer;
  Region* r = find_region(address, nullptr);
  if (r) for_cells(*r, address, size, [](Cell& cell, size_t) { cell.initialised = 0; });
}

void check_tile(const void* pointer, size_t size, uint32_t since, const void* place) {
  uintptr_t address = (uintptr_t)pointer;
  Region* r = find_region(address, place);
  if (!r || !r->shared || address + size > r->high)
    fault("memcheck", "wgmma's descriptor leads out of shared memory, at " PLACE, place);
  Fiber& fiber = *worker->running;
  Visit now{shadow.epoch, (uint16_t)(fiber.thread + 1), worker->warps[fiber.warp].clock[fiber.lane]};
  for_cells(*r, address, size, [&](Cell& cell, size_t i) {
    if (!written(*r, cell))
      fault("initcheck", "wgmma reads byte %zu of %s, which nobody has written, at " PLACE, i << r->grain, r->name,
            place);
    if (cell.write.epoch > since)
      fault("racecheck", "byte %zu of %s was written by %s before wgmma, which reads it, was waited for at " PLACE,
            i << r->grain, r->name, who(cell.write).text, place);
    if (unordered(cell.write, now, true)) report_race(*r, i, Access::read, "write", cell.write, place);
    unsigned writer = cell.write.thread - 1u;
    const Fiber* of_writer = worker->warps[writer / warp_size].fibers[writer % warp_size];
    if (of_writer && of_writer->proxy_fences == cell.proxy_fences)
      fault("racecheck", "wgmma reads byte %zu of %s, which %s wrote without a fence.proxy.async after it, at " PLACE,
            i << r->grain, r->name, who(cell.write).text, place);
    note_read(cell, now, true);
  });
}

extern "C" {

void emu_check_atomic(void* address, unsigned size) {
  if (!worker->launch->checked) return;
  const void* place = CALLER;
  check_access(address, size, Access::atomic, place);
  // Let other threads in between two atomic operations, and do so for certain in a loop that waits.
  Fiber& fiber = *worker->running;
  bool interrupt = worker->launch->seed && random_below(worker->random, 8) == 0;
  if (++fiber.atomics_since_wait == most_atomics)
    fault("synccheck", "%u atomic operations by one thread: does the loop at " PLACE " wait for another block?",
          most_atomics, place);
  if (fiber.atomics_since_wait % 256 == 0 || interrupt) yield();
}

void emu_check_range(const void* address, emu_size size, bool write) {
  if (!worker->launch->checked) return;
  const char* bytes = (const char*)address;
  const void* place = CALLER;
  emu_size step = ((uintptr_t)address | size) % 4 ? 1 : 4;
  for (emu_size i = 0; i < size; i += step) check_access(bytes + i, step, write ? Access::write : Access::read, place);
}

// Forget the buffers of the last launch; those of the next follow.
void emu_clear_buffers(uint64_t image_low, uint64_t image_high) {
  for (Pages& pages : shadow.split) pages.release();
  shadow.split.clear();
  if (shadow.pages.size > kept_bytes) shadow.pages.release();
  shadow.regions.assign(2, Region{});
  shadow.image_low = image_low;
  shadow.image_high = image_high;
}
// Writable buffers come first: where buffers overlap, their rules hold.
void emu_add_buffer(const void* address, uint64_t size, unsigned item, int initialised, int constant,
                    const char* name) {
  unsigned grain = item % 8 == 0 ? 3 : item % 4 == 0 ? 2 : item % 2 == 0 ? 1 : 0;
  while ((uintptr_t)address & ((1u << grain) - 1)) grain--;
  Region r = region_of((uintptr_t)address, size, grain, name);
  r.initialised = initialised;
  r.constant = constant;
  auto place = shadow.regions.end();
  if (!constant)
    place = std::find_if(shadow.regions.begin() + 2, shadow.regions.end(), [](const Region& x) { return x.constant; });
  shadow.regions.insert(place, r);
}

// How many bytes of the buffer at `address` nobody has written in the launch that has ended, and the first of them.
uint64_t emu_count_unwritten(const void* address, uint64_t* first) {
  uint64_t count = 0;
  for (Region& r : shadow.regions) {
    if (r.shared || r.low != (uintptr_t)address || r.initialised || r.low == r.high) continue;
    size_t cells = (r.high - r.low) >> r.grain;
    for (size_t i = cells; i-- > 0;)
      if (r.cells[i].initialised < shadow.launch_first) {
        count += (uint64_t)1 << r.grain;
        *first = (uint64_t)i << r.grain;
      }
    return count;
  }
  return 0;
}

}  // extern "C"
