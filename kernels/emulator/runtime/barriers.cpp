// The barrier of a block.
#include "state.h"

namespace {

void open_barrier(Worker& w) {
  for (Fiber* fiber : w.at_barrier) wake(fiber);
  w.at_barrier.clear();
  w.vote_result = w.votes;
  if (w.launch->checked) next_epoch();
}

}  // namespace

extern "C" int emu_block_barrier(int line, emu_vote_kind kind, int vote) {
  Worker& w = *worker;
  Fiber* self = w.running;
  const void* place = CALLER;
  if (w.live < w.threads)
    fault("synccheck", "%u threads of the block ended before the __syncthreads at " PLACE, w.threads - w.live, place);
  if (w.at_barrier.empty()) {
    w.barrier_line = line;
    w.vote_kind = kind;
    w.votes = kind == emu_and;
  } else if (w.barrier_line != line || w.vote_kind != kind) {
    const Fiber& other = *w.at_barrier[0];
    const uint3& t = other.index;
    fault("synccheck", "a __syncthreads at " PLACE ", while thread (%u,%u,%u) waits at another, " PLACE, place, t.x,
          t.y, t.z, other.waits_at);
  }
  w.votes = kind == emu_or ? w.votes | vote : kind == emu_and ? w.votes & vote : w.votes + vote;
  if (w.at_barrier.size() + 1 == w.threads) {
    open_barrier(w);
    return w.vote_result;
  }
  w.at_barrier.push_back(self);
  wait_for("__syncthreads", place);
  return w.vote_result;
}
