// emu_rt.cpp — fiber scheduler, barriers, warp exchange, cp.async queue, and the access checker.
// Built once into libemu.so WITHOUT -fsanitize; kernels may be built with -fsanitize=thread, whose
// __tsan_* hooks land in emu_check.cpp (libtsan is never linked).
#include "cuda_shim.h"
#include "internal.h"
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <link.h>
#include <sys/mman.h>
#include <thread>
#include <vector>
#include <deque>
#include <algorithm>
#include <random>
__thread emu_ctx* emu_cur;
__thread Worker* W __attribute__((tls_model("initial-exec")));
Opts emu_opts;
std::atomic<int> g_fail; char g_msg[4096];
static std::atomic<long> g_next;

extern "C" void emu_switch(void** save, void* to);
asm(R"(.text
.globl emu_switch
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
 popq %rcx
 jmp *%rcx
.size emu_switch,.-emu_switch
)");

void emu_fail(const char* kind, const char* detail) {        // record first failure, never return to this fiber
  int z = 0;
  if (g_fail.compare_exchange_strong(z, 1)) {
    Fiber* f = W->run; const uint3 &b = f->c.bid, &t = f->c.tid;
    snprintf(g_msg, sizeof g_msg, "%s: %s [block (%u,%u,%u) thread (%u,%u,%u)]", kind, detail, b.x, b.y, b.z, t.x, t.y, t.z);
  }
  emu_switch(&W->run->sp, W->sched);
  __builtin_unreachable();
}
static void to_sched() {                                     // block this fiber: jump straight to the next ready one
  Worker* w = W; Fiber* f = w->run;
  if (!w->ready.empty() && !g_fail.load(std::memory_order_relaxed)) {
    Fiber* n = w->ready.front(); w->ready.pop_front(); w->run = n; emu_cur = &n->c; if (n != f) emu_switch(&f->sp, n->sp);
  } else emu_switch(&f->sp, w->sched);
  emu_cur = &f->c;
}

static void fiber_main() {                                   // runs fresh threads until one of them blocks
  for (;;) {
    Fiber* f = W->run;
    if (W->next < W->nthr && !g_fail.load(std::memory_order_relaxed)) {
      unsigned lin = W->perm[W->next++];
      emu_ctx& c = f->c; c.lin = lin; c.lane = lin & 31; c.warp = lin >> 5;
      c.tid = {lin % c.bdim.x, lin / c.bdim.x % c.bdim.y, lin / c.bdim.x / c.bdim.y};
      f->nq = 0; f->ngrp = 0; W->warps[c.warp].fib[c.lane] = f; emu_cur = &c;
      W->thunk(W->data);
      if (f->nq) emu_fail("cp.async", "thread exited with un-waited cp.async copies");
      f = W->run; W->live--; W->warps[f->c.warp].fib[f->c.lane] = nullptr;
      if (W->bar && W->bar == W->live) {                     // remaining threads all wait; sm_70+ releases them
        if (emu_opts.strict) { W->divergent = true; }
        W->release();
      }
    } else { f->idle = true; W->idle.push_back(f); emu_switch(&f->sp, W->sched); }
  }
}
void Worker::release() { for (Fiber* f : waiting) ready.push_back(f); waiting.clear(); bar = 0; epoch++; barpc = nullptr; redv = redacc; redacc = redinit; }

static Fiber* get_fiber() {
  if (!W->idle.empty()) { Fiber* f = W->idle.back(); W->idle.pop_back(); f->idle = false; return f; }
  Fiber* f = new Fiber; size_t n = emu_opts.stack;
  f->lo = (char*)mmap(nullptr, n + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  mprotect(f->lo, 4096, PROT_NONE); f->hi = f->lo + n + 4096;
  void** s = (void**)(f->hi - 64 - (W->all.size() * 320 & 4032)); /* staggered: equal page offsets would thrash one L1 set */ *--s = nullptr; *--s = (void*)&fiber_main; for (int i = 0; i < 6; i++) *--s = nullptr;
  f->sp = s; W->all.push_back(f); return f;
}
static void run_block(const unsigned* g, const unsigned* b, long bi, size_t smem) {
  W->nthr = b[0] * b[1] * b[2]; W->next = 0; W->live = W->nthr; W->bar = 0; W->epoch = 1; W->divergent = false;
  W->waiting.clear(); W->ready.clear(); W->warps.assign((W->nthr + 31) / 32, Warp{}); W->block = bi;
  W->perm.resize(W->nthr); for (unsigned i = 0; i < W->nthr; i++) W->perm[i] = i;
  if (emu_opts.seed) std::shuffle(W->perm.begin(), W->perm.end(), std::mt19937_64(emu_opts.seed * 1000003ull + bi));
  if (W->shn) memset(W->sh, 0xFF, W->shn);                   // poison static __shared__ (NaN / -1)
  if (smem) memset(W->dyn, 0xFF, smem);
  check_block_begin();
  uint3 bid = {(unsigned)(bi % g[0]), (unsigned)(bi / g[0] % g[1]), (unsigned)(bi / g[0] / g[1])};
  while (W->live && !g_fail.load(std::memory_order_relaxed)) {
    Fiber* f;
    if (!W->ready.empty()) { f = W->ready.front(); W->ready.pop_front(); }
    else if (W->next < W->nthr) { f = get_fiber(); f->c.bid = bid; f->c.bdim = {b[0], b[1], b[2]}; f->c.gdim = {g[0], g[1], g[2]}; f->c.dyn = W->dyn; }
    else { W->run = W->all[0]; int z = 0; if (g_fail.compare_exchange_strong(z, 1))
             snprintf(g_msg, sizeof g_msg, "synccheck: deadlock in block (%u,%u,%u): %u live threads, %u at __syncthreads, rest in warp ops", bid.x, bid.y, bid.z, W->live, W->bar);
           break; }
    W->run = f; emu_cur = &f->c; emu_switch(&W->sched, f->sp);
  }
  if (W->divergent && !g_fail) { g_fail = 1; snprintf(g_msg, sizeof g_msg, "synccheck: block (%u,%u,%u): some threads exited before a __syncthreads others reached", bid.x, bid.y, bid.z); }
  check_block_end();
}
static int find_tls(dl_phdr_info* i, size_t, void* p) {
  auto* q = (std::pair<char*, size_t>*)p;
  for (int k = 0; k < i->dlpi_phnum; k++) if (i->dlpi_phdr[k].p_type == PT_TLS && i->dlpi_tls_data) {
    char* d = (char*)i->dlpi_tls_data; size_t n = i->dlpi_phdr[k].p_memsz;
    if (q->first >= d && q->first < d + n) { q->first = d; q->second = n; return 1; } }
  return 0;
}
static void worker(void (*thunk)(void*), void* data, const unsigned* g, const unsigned* b, size_t smem, void* (*tls)()) {
  Worker w; W = &w; w.thunk = thunk; w.data = data; w.dynn = smem; w.dyn = smem ? (char*)aligned_alloc(1024, (smem + 1023) & ~1023ull) : nullptr;
  std::pair<char*, size_t> r{(char*)tls(), 0}; dl_iterate_phdr(find_tls, &r); w.sh = r.first; w.shn = r.second;
  long nb = (long)g[0] * g[1] * g[2];
  for (long i; (i = g_next++) < nb && !g_fail;) run_block(g, b, emu_opts.seed & 1 ? nb - 1 - i : i, smem);
  for (Fiber* f : w.all) { munmap(f->lo, f->hi - f->lo); delete f; }
  free(w.dyn); W = nullptr; emu_cur = nullptr;
}
extern "C" {
int emu_launch(void (*thunk)(void*), void* data, const unsigned* g, const unsigned* b, size_t smem, void* (*tls)()) {
  if ((uint64_t)b[0] * b[1] * b[2] > 1024 || g[1] > 65535 || g[2] > 65535 || b[2] > 64 || !g[0] || !g[1] || !g[2] || !b[0] || !b[1] || !b[2] || smem > 227 * 1024) {
    snprintf(g_msg, sizeof g_msg, "launch: invalid configuration grid (%u,%u,%u) block (%u,%u,%u) smem %zu", g[0], g[1], g[2], b[0], b[1], b[2], smem); return 1; }
  g_fail = 0; g_msg[0] = 0; g_next = 0; check_launch_begin();
  long nb = (long)g[0] * g[1] * g[2]; int n = emu_opts.check ? 1 : (int)std::min<long>(emu_opts.workers, nb);
  if (n <= 1) worker(thunk, data, g, b, smem, tls);
  else { std::vector<std::thread> t; for (int i = 0; i < n; i++) t.emplace_back(worker, thunk, data, g, b, smem, tls); for (auto& x : t) x.join(); }
  return g_fail;
}
const char* emu_error() { return g_msg; }
void emu_set(int workers, unsigned long seed, int strict, int check, size_t stack) { emu_opts = {workers, seed, strict, check, stack}; }
void emu_trap(const char* why) { emu_fail("trap", why); }

void emu_syncthreads(void* pc) {
  Worker* w = W;
  if (emu_opts.strict && w->barpc && w->barpc != pc) { char d[120]; snprintf(d, sizeof d, "threads of one block wait at different __syncthreads (lines %zu and %zu)", (size_t)w->barpc, (size_t)pc); emu_fail("synccheck", d); }
  w->barpc = pc;
  if (++w->bar == w->live) { w->release(); return; }
  w->waiting.push_back(w->run); to_sched();
}
int emu_syncthreads_red(void* pc, int v, int op) {
  Worker* w = W; w->redinit = op == 1; if (!w->bar) w->redacc = op == 1;
  w->redacc = op == 0 ? (w->redacc | (v != 0)) : op == 1 ? (w->redacc & (v != 0)) : w->redacc + (v != 0);
  emu_syncthreads(pc); return w->redv;
}
static unsigned full_mask(unsigned warp) { return W->nthr - warp * 32 >= 32 ? ~0u : (1u << (W->nthr & 31)) - 1; }
static bool warp_barrier(unsigned m) {                       // true in the lane that completed it
  Fiber* f = W->run; Warp& q = W->warps[f->c.warp];
  if (!(m >> f->c.lane & 1)) emu_fail("synccheck", "lane not named in its own warp mask");
  q.arr |= 1u << f->c.lane;
  if ((q.arr & m) != m) { to_sched(); return false; }
  q.arr &= ~m; if (m == full_mask(f->c.warp)) q.nfull++;
  for (int i = 0; i < 32; i++) if ((m >> i & 1) && (int)f->c.lane != i) W->ready.push_back(q.fib[i]);
  return true;
}
void emu_syncwarp(unsigned m, void*) { unsigned w = W->run->c.warp; if (warp_barrier(m & full_mask(w))) W->warps[w].epoch++; }
void* emu_exchange(unsigned m, const void* v, unsigned n, void*) {
  Fiber* f = W->run; Warp& q = W->warps[f->c.warp]; unsigned full = full_mask(f->c.warp); m &= full;
  if (m == full) { auto* b = q.buf[q.nfull & 1]; memcpy(b[f->c.lane], v, n); warp_barrier(m); return b; }  // double buffered
  memcpy(q.buf[2][f->c.lane], v, n); warp_barrier(m);        // partial mask: copy out, then a second barrier
  memcpy(f->xbuf, q.buf[2], sizeof f->xbuf); warp_barrier(m); return f->xbuf;
}
void emu_cp_async(void* d, const void* s, unsigned n, unsigned sn) {
  Fiber* f = W->run; if (f->nq == MAXQ) emu_fail("cp.async", "queue overflow");
  if (((uintptr_t)d | (uintptr_t)s) & (n - 1)) emu_fail("cp.async", "misaligned");
  check_access((void*)s, sn, false, __builtin_return_address(0)); check_access(d, n, true, __builtin_return_address(0));
  check_mark(d, n, false); memset(d, 0xFF, n);               // destination is undefined until waited for
  f->q[f->nq++] = {d, s, n, sn, f->ngrp};
}
void emu_cp_commit() { W->run->ngrp++; }
void emu_cp_wait(unsigned keep) {
  Fiber* f = W->run; unsigned j = 0;
  for (unsigned i = 0; i < f->nq; i++) { CpReq& r = f->q[i];
    if (r.grp + keep < f->ngrp) { memcpy(r.dst, r.src, r.sn); memset((char*)r.dst + r.sn, 0, r.n - r.sn); check_mark(r.dst, r.n, true); } else f->q[j++] = r; }
  f->nq = j;
}
void emu_mma_tf32(float* d, const char* s) {
  auto A = [s](int r, int k) { unsigned u; memcpy(&u, s + 64 * ((r & 7) * 4 + (k & 3)) + 4 * ((r >> 3) + 2 * (k >> 2)), 4); return __uint_as_float(u & ~0x1fffu); };
  auto B = [s](int k, int n) { unsigned u; memcpy(&u, s + 64 * (n * 4 + (k & 3)) + 16 + 4 * (k >> 2), 4); return __uint_as_float(u & ~0x1fffu); };
  int g = emu_cur->lane >> 2, t = emu_cur->lane & 3;
  for (int i = 0; i < 4; i++) { int r = g + 8 * (i >> 1), c = 2 * t + (i & 1); double acc = d[i];
    for (int k = 0; k < 8; k++) acc += (double)A(r, k) * B(k, c);
    d[i] = (float)acc; }
}
}
