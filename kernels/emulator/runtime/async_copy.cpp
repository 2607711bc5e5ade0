// cp.async: copies to shared memory that arrive when they are waited for, and not before.
#include "state.h"

extern "C" {

void emu_copy_async(void* target, const void* source, unsigned size, unsigned present) {
  Fiber& fiber = *worker->running;
  const void* place = CALLER;
  if (((uintptr_t)target | (uintptr_t)source) & (size - 1))
    fault("memcheck", "misaligned cp.async of %u bytes at " PLACE, size, place);
  check_access(source, present, Access::read, place);
  check_access(target, size, Access::async_write, place);
  memset(target, 0xff, size);
  if (worker->launch->checked) check_pending(target, size);
  fiber.copies.push_back({target, source, size, present, fiber.copy_groups});
}

void emu_copy_commit() { worker->running->copy_groups++; }

// Complete all groups of this thread's but the last `pending`.
void emu_copy_wait(unsigned pending) {
  Fiber& fiber = *worker->running;
  const void* place = CALLER;
  size_t kept = 0;
  for (const AsyncCopy& copy : fiber.copies) {
    if (copy.group + pending >= fiber.copy_groups) {
      fiber.copies[kept++] = copy;
      continue;
    }
    memcpy(copy.target, copy.source, copy.present);
    memset((char*)copy.target + copy.present, 0, copy.size - copy.present);
    if (worker->launch->checked) check_access(copy.target, copy.size, Access::async_write, place);
  }
  fiber.copies.resize(kept);
}

}  // extern "C"
