// What lanes of a warp do together.
#include "state.h"

namespace {

const char* name_of(unsigned kind) {
  static const char* const names[] = {"a shuffle", "a vote", "a match", "a reduction", "a matrix instruction", "__syncwarp"};
  return names[kind];
}

// All lanes of `mask` have seen what each of them did.
void join_clocks(Warp& warp, unsigned mask) {
  unsigned short latest[warp_size] = {};
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1) {
      warp.seen[lane][lane] = warp.clock[lane]++;
      for (unsigned other = 0; other < warp_size; other++)
        if (latest[other] < warp.seen[lane][other]) latest[other] = warp.seen[lane][other];
    }
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1) memcpy(warp.seen[lane], latest, sizeof latest);
}

// Note that the running lane has come; whether it is the last of `mask`, which has then woken the others.
bool arrive(Warp& warp, unsigned mask, emu_collective kind, unsigned size, const void* place) {
  Fiber* self = worker->running;
  unsigned lane = self->lane;
  if (!(mask >> lane & 1)) fault("synccheck", "%s with mask %08x, which lacks the lane itself, %u, at " PLACE,
                                 name_of(kind), mask, lane, place);
  if (mask & warp.exited)
    fault("synccheck", "%s with mask %08x, whose lane %d has ended, at " PLACE, name_of(kind), mask,
          __builtin_ctz(mask & warp.exited), place);
  warp.fibers[lane] = self;
  warp.masks[lane] = mask;
  warp.kinds[lane] = kind;
  warp.sizes[lane] = size;
  for (unsigned others = warp.arrived & mask; others; others &= others - 1) {
    unsigned other = __builtin_ctz(others);
    if (warp.masks[other] != mask || warp.kinds[other] != kind || warp.sizes[other] != size)
      fault("synccheck", "%s with mask %08x at " PLACE ", while lane %u waits in %s with mask %08x at " PLACE,
            name_of(kind), mask, place, other, name_of(warp.kinds[other]), warp.masks[other],
            warp.fibers[other]->waits_at);
  }
  warp.arrived |= 1u << lane;
  return (warp.arrived & mask) == mask;
}

void release(Warp& warp, unsigned mask) {
  unsigned self = worker->running->lane;
  warp.arrived &= ~mask;
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1 && lane != self) wake(warp.fibers[lane]);
}

const void* gather(emu_collective kind, unsigned mask, const void* value, unsigned size, const void* place) {
  Fiber* self = worker->running;
  Warp& warp = worker->warps[self->warp];
  mask &= warp.existing;
  if (mask == warp.existing) {  // nobody can be two collectives ahead of another: two buffers will do
    char* all = warp.gathered[warp.full_collectives & 1];
    memcpy(all + self->lane * size, value, size);
    if (arrive(warp, mask, kind, size, place)) {
      warp.full_collectives++;
      release(warp, mask);
    } else {
      wait_for(name_of(kind), place);
    }
    return all;
  }
  char* all = warp.gathered[2];  // by lanes' slots of gather_bytes: collectives of other lanes may be under way
  memcpy(all + self->lane * gather_bytes, value, size);
  if (!arrive(warp, mask, kind, size, place)) {
    wait_for(name_of(kind), place);
    return self->gathered;
  }
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1) memcpy(self->gathered + lane * size, all + lane * gather_bytes, size);
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1 && lane != self->lane)
      memcpy(warp.fibers[lane]->gathered, self->gathered, warp_size * size);
  release(warp, mask);
  return self->gathered;
}

}  // namespace

extern "C" {

const void* emu_gather(emu_collective kind, unsigned mask, const void* value, unsigned size) {
  return gather(kind, mask, value, size, CALLER);
}

void emu_warp_sync(unsigned mask) {
  const void* place = CALLER;
  Warp& warp = worker->warps[worker->running->warp];
  mask &= warp.existing;
  if (!arrive(warp, mask, emu_warp_barrier, 0, place)) return wait_for("__syncwarp", place);
  if (worker->launch->checked) join_clocks(warp, mask);
  release(warp, mask);
}

unsigned emu_existing_lanes() { return worker->warps[worker->running->warp].existing; }
unsigned emu_active_mask() {
  const Warp& warp = worker->warps[worker->running->warp];
  return warp.existing & ~warp.exited;
}

void emu_absent_lane(unsigned mask, int lane) {
  fault("synccheck", "a shuffle with mask %08x reads lane %d, which isn't in it, at " PLACE, mask, lane, CALLER);
}

}  // extern "C"
