// Stacks for threads that wait, and the switch between them.
#include <sys/mman.h>

#include "state.h"

#ifndef __x86_64__
#error "the emulator switches stacks in x86-64's assembly"
#endif

namespace {

// A thread on a GPU may have 512 KB of local memory. Pages that it doesn't touch cost nothing.
constexpr size_t stack_bytes = 640 * 1024, guard_bytes = 4096;

// Save what a called function must keep, exchange stacks, restore. ucontext would do a system call each time.
extern "C" void emu_switch(void** from, void* to);
asm(R"(.text
.local emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

// Let `fiber` begin at `body` when it is next switched to.
void reset_stack(Fiber& fiber, void (*body)(), size_t number) {
  // Stacks that all start at one offset of a page would compete for the same lines of the cache.
  void** top = (void**)(fiber.high - 64 - number * 320 % 4096 / 64 * 64);
  *--top = nullptr;  // where `body` would return to; it never does
  *--top = (void*)body;
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  fiber.stack_pointer = top;
}

Fiber* make_fiber() {
  Fiber* fiber = new Fiber;
  void* memory = mmap(nullptr, stack_bytes + guard_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    delete fiber;
    return nullptr;
  }
  mprotect(memory, guard_bytes, PROT_NONE);
  fiber->low = (char*)memory;
  fiber->high = fiber->low + guard_bytes + stack_bytes;
  return fiber;
}

}  // namespace
