// What lanes of a warp do together.
#include "state.h"

namespace {

const char* name_of(unsigned kind) {
  static const char* const names[] = {"a shuffle", "a vote", "a match", "a reduction", "a matrix instruction",
                                      "__syncwarp"};
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

struct Collective {
  unsigned mask;
  emu_collective kind;
  unsigned size;
};

// Lanes that wait in the same collective. One that waits for this lane in another one never goes on: the two of them
// wait for each other. One that doesn't wait for this lane is in an earlier collective of its own, and will come.
unsigned lanes_waiting(const Warp& warp, const Collective& c, const void* place) {
  if (warp.alike && warp.masks[__builtin_ctz(warp.arrived)] == c.mask &&
      warp.kinds[__builtin_ctz(warp.arrived)] == c.kind && warp.sizes[__builtin_ctz(warp.arrived)] == c.size)
    return warp.arrived;
  unsigned waiting = 0, self = 1u << worker->running->lane;
  for (unsigned others = warp.arrived & c.mask; others; others &= others - 1) {
    unsigned lane = __builtin_ctz(others);
    bool same = warp.masks[lane] == c.mask && warp.kinds[lane] == c.kind && warp.sizes[lane] == c.size;
    if (same) waiting |= 1u << lane;
    else if (warp.masks[lane] & self)
      fault("synccheck", "%s with mask %08x at " PLACE ", while lane %u waits in %s with mask %08x at " PLACE,
            name_of(c.kind), c.mask, place, lane, name_of(warp.kinds[lane]), warp.masks[lane],
            warp.fibers[lane]->waits_at);
  }
  return waiting;
}

// Note that the running lane has come; whether it is the last of the mask.
bool arrive(Warp& warp, const Collective& c, const void* place) {
  Fiber* self = worker->running;
  unsigned lane = self->lane;
  if (!(c.mask >> lane & 1))
    fault("synccheck", "%s with mask %08x, which lacks the lane itself, %u, at " PLACE, name_of(c.kind), c.mask, lane,
          place);
  if (c.mask & warp.exited)
    fault("synccheck", "%s with mask %08x, whose lane %d has ended, at " PLACE, name_of(c.kind), c.mask,
          __builtin_ctz(c.mask & warp.exited), place);
  unsigned waiting = warp.arrived ? lanes_waiting(warp, c, place) : 0;
  warp.alike = waiting == warp.arrived;
  warp.fibers[lane] = self;
  warp.masks[lane] = c.mask;
  warp.kinds[lane] = c.kind;
  warp.sizes[lane] = c.size;
  warp.arrived |= 1u << lane;
  return (waiting | 1u << lane) == c.mask;
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
    if (arrive(warp, {mask, kind, size}, place)) {
      warp.full_collectives++;
      release(warp, mask);
    } else {
      wait_for(name_of(kind), place);
    }
    return all;
  }
  char* all = warp.gathered[2];  // by lanes' slots of gather_bytes: collectives of other lanes may be under way
  memcpy(all + self->lane * gather_bytes, value, size);
  if (!arrive(warp, {mask, kind, size}, place)) {
    wait_for(name_of(kind), place);
    return self->gathered;
  }
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1) memcpy(self->gathered + lane * size, all + lane * gather_bytes, size);
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (mask >> lane & 1 && lane != self->lane) memcpy(warp.fibers[lane]->gathered, self->gathered, warp_size * size);
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
  if (!arrive(warp, {mask, emu_warp_barrier, 0}, place)) return wait_for("__syncwarp", place);
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
