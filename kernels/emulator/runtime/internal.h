#pragma once
#include <cstdint>
#include <cstddef>
#include <deque>
#include <vector>
#include "cuda_shim.h"
constexpr unsigned MAXQ = 256;
struct CpReq { void* dst; const void* src; unsigned n, sn, grp; };
struct Fiber { void* sp; emu_ctx c; unsigned nq = 0, ngrp = 0; bool idle = false; char *lo, *hi; CpReq q[MAXQ]; char xbuf[32][64]; };
struct Warp { Fiber* fib[32] = {}; unsigned arr = 0, epoch = 0, nfull = 0; char buf[3][32][64]; };
struct Ring { Fiber* a[2048]; unsigned h = 0, t = 0; bool empty() const { return h == t; } void push_back(Fiber* f) { a[t++ & 2047] = f; }
  Fiber* front() const { return a[h & 2047]; } void pop_front() { h++; } void clear() { h = t = 0; } };
struct Worker {
  void (*thunk)(void*); void* data; void* sched; Fiber* run; unsigned nthr, next, live, bar, epoch; long block;
  char *sh = nullptr, *dyn = nullptr; size_t shn = 0, dynn = 0; void* barpc = nullptr; bool divergent = false; int redacc = 0, redv = 0, redinit = 0;
  std::vector<Fiber*> all, idle, waiting; Ring ready; std::vector<Warp> warps; std::vector<unsigned> perm;
  void release();
};
struct Opts { int workers = 1; unsigned long seed = 0; int strict = 1, check = 0; size_t stack = 65536; };
extern Opts emu_opts;
extern __thread Worker* W __attribute__((tls_model("initial-exec")));
[[noreturn]] void emu_fail(const char* kind, const char* detail);
void check_launch_begin(); void check_block_begin(); void check_block_end();
void check_access(void* p, unsigned n, bool write, void* pc, bool atomic = false);
void check_mark(void* p, unsigned n, bool init);      // cp.async: destination undefined until waited for
