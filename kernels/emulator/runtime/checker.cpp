// emu_check.cpp — our own landing place for g++ -fsanitize=thread hooks (libtsan is NOT linked).
// Gives exact bounds (per argument buffer), uninitialised-read, CUDA-semantics race checks and
// coalescing / bank-conflict counts, all without a GPU and without LD_PRELOAD.
#include "internal.h"
#include <cstdio>
#include <cstring>
#include <link.h>
#include <map>
#include <string>
#include <sys/mman.h>
#include <unordered_map>
struct Acc { uint32_t blk; uint32_t e; uint16_t tid, we; };        // tid+1, 0 = none
struct Cell { Acc w, r1, r2; uint32_t ini; uint8_t atom; };
struct Region { uintptr_t lo, hi; const char* name; int gs; bool init_all, ro; Cell* c; size_t n; };
static Region reg[64]; static int nreg; static Region shm, dynm;
static uintptr_t mod_lo, mod_hi;                                    // kernel .so image: constant tables
struct Site { void* pc; bool write, shared; long req = 0, bytes = 0, sectors = 0, ideal = 0, ways = 0, maxways = 0; };
static std::map<std::pair<void*, int>, Site> sites;
struct Rec { uint32_t lane; uint32_t size; uintptr_t a; };
static std::map<std::tuple<void*, int, unsigned, unsigned>, std::vector<Rec>> recs;  // (pc, kind, warp, k-th visit)
static std::unordered_map<uint64_t, unsigned> visits;
static std::string report;

static Cell* shadow(size_t n) { return (Cell*)mmap(nullptr, n * sizeof(Cell) + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
static void setup(Region& r, uintptr_t lo, size_t n, const char* nm, int gs, bool init, bool ro) {
  r = {lo, lo + n, nm, gs, init, ro, nullptr, (n >> gs) + 1}; r.c = shadow(r.n); }
static void drop(Region& r) { if (r.c) munmap(r.c, r.n * sizeof(Cell) + 1); r = Region{}; }
extern "C" {
void emu_buf(void* p, size_t n, const char* name, int gs, int init, int ro) { if (nreg < 64) setup(reg[nreg++], (uintptr_t)p, n, strdup(name), gs, init, ro); }
void emu_bufs_clear() { for (int i = 0; i < nreg; i++) drop(reg[i]); nreg = 0; }
long emu_unwritten(int i, long* first) { long k = 0; *first = -1; size_t m = (reg[i].hi - reg[i].lo) >> reg[i].gs;
  for (size_t j = 0; j < m; j++) if (!reg[i].c[j].ini) { if (*first < 0) *first = j; k++; } return k; }
const char* emu_report() {
  report.clear(); char b[256];
  for (auto& kv : sites) { Site& s = kv.second; snprintf(b, sizeof b, "%p %s %s %ld %ld %ld %ld %ld %ld\n", s.pc, s.shared ? "shared" : "global", s.write ? "store" : "load", s.req, s.bytes, s.sectors, s.ideal, s.ways, s.maxways); report += b; }
  return report.c_str();
}
void emu_report_clear() { sites.clear(); }
void emu_set_module(void* a) {
  struct Q { uintptr_t a; } q{(uintptr_t)a};
  dl_iterate_phdr([](dl_phdr_info* i, size_t, void* p) { uintptr_t a = ((Q*)p)->a;
    for (int k = 0; k < i->dlpi_phnum; k++) if (i->dlpi_phdr[k].p_type == PT_LOAD) { uintptr_t l = i->dlpi_addr + i->dlpi_phdr[k].p_vaddr, h = l + i->dlpi_phdr[k].p_memsz;
      if (a >= l && a < h) { mod_lo = i->dlpi_addr; for (int j = 0; j < i->dlpi_phnum; j++) if (i->dlpi_phdr[j].p_type == PT_LOAD) mod_hi = i->dlpi_addr + i->dlpi_phdr[j].p_vaddr + i->dlpi_phdr[j].p_memsz; return 1; } }
    return 0; }, &q);
}
unsigned long emu_module_base() { return mod_lo; }
}
void check_launch_begin() { visits.clear(); recs.clear(); drop(shm); drop(dynm); }
void check_block_begin() {
  if (!emu_opts.check) return;
  if (!shm.c && W->shn) setup(shm, (uintptr_t)W->sh, W->shn, "__shared__", 1, false, false);
  if (!dynm.c && W->dynn) setup(dynm, (uintptr_t)W->dyn, W->dynn, "dynamic shared", 1, false, false);
}
void check_block_end() {
  if (emu_opts.check < 2) return;
  for (auto& kv : recs) {
    auto [pc, kind, warp, k] = kv.first; auto& v = kv.second; Site& s = sites[{pc, kind}]; s.pc = pc; s.write = kind & 1; s.shared = kind & 2; s.req++;
    if (s.shared) {
      unsigned per = v[0].size >= 16 ? 8 : v[0].size >= 8 ? 16 : 32; long tot = 0, ph = 0;
      for (unsigned l0 = 0; l0 < 32; l0 += per) { std::map<uintptr_t, int> words; int bank[32] = {}; int mx = 0;
        for (auto& r : v) if (r.lane >= l0 && r.lane < l0 + per) for (unsigned o = 0; o < r.size; o += 4) { uintptr_t w = (r.a + o) >> 2; if (!words[w]++) { int n = ++bank[w & 31]; if (n > mx) mx = n; } }
        if (mx) { tot += mx; ph++; } }
      s.ways += tot; s.ideal += ph; if (ph && tot / ph > s.maxways) s.maxways = tot / ph;
      for (auto& r : v) s.bytes += r.size;
    } else {
      std::map<uintptr_t, int> sec, by; long b = 0; for (auto& r : v) { b += r.size; for (uintptr_t a = r.a >> 5; a <= (r.a + r.size - 1) >> 5; a++) sec[a]++; by[r.a] = r.size; }
      long u = 0; for (auto& x : by) u += x.second;
      s.bytes += b; s.sectors += sec.size(); s.ideal += (u + 31) / 32;
    }
  }
  recs.clear(); visits.clear();
}
static inline bool conflict(const Acc& o, uint32_t blk, uint32_t tid, uint32_t e, uint16_t we, bool shared) {
  if (!o.tid || o.tid == tid + 1u && o.blk == blk) return false;
  if (o.blk != blk) return !shared;                                 // other block: never ordered inside one launch
  if (o.e != e) return false;                                       // a __syncthreads in between
  return !(((o.tid - 1u) >> 5) == (tid >> 5) && o.we != we);        // or a __syncwarp
}
void check_access(void* p, unsigned n, bool write, void* pc, bool atomic) {
  uintptr_t a = (uintptr_t)p; Worker* w = W; if (!w || !n || !emu_opts.check) return; Fiber* f = w->run;
  if (a - (uintptr_t)f->lo < (uintptr_t)(f->hi - f->lo)) return;    // local memory
  if (a - (uintptr_t)f < sizeof(Fiber)) return;                     // threadIdx & co
  if ((void*)p == (void*)&emu_cur) return;
  Region* r = nullptr; bool shared = false; char d[300];
  if (shm.c && a >= shm.lo && a < shm.hi) { r = &shm; shared = true; }
  else if (dynm.c && a >= dynm.lo && a < dynm.hi) { r = &dynm; shared = true; }
  else for (int i = 0; i < nreg; i++) if (a >= reg[i].lo && a < reg[i].hi) { r = &reg[i]; break; }
  if (!r) {
    if (!write && a >= mod_lo && a + n <= mod_hi) return;
    Region* best = nullptr; uintptr_t bd = ~0ull;
    for (int i = 0; i < nreg; i++) { uintptr_t x = a < reg[i].lo ? reg[i].lo - a : a - reg[i].hi; if (x < bd) { bd = x; best = &reg[i]; } }
    snprintf(d, sizeof d, "%s of %u bytes at %p, %ld bytes %s buffer '%s' pc=%p", write ? "write" : "read", n, p, (long)bd, best && a < best->lo ? "before" : "past", best ? best->name : "?", pc);
    emu_fail("memcheck", d);
  }
  const char* what = write ? "write" : "read";
  if (a + n > r->hi) { snprintf(d, sizeof d, "%s of %u bytes straddles the end of '%s' pc=%p", what, n, r->name, pc); emu_fail("memcheck", d); }
  if (write && r->ro) { snprintf(d, sizeof d, "write to const buffer '%s' pc=%p", r->name, pc); emu_fail("memcheck", d); }
  if (n <= 16 && a & (n - 1)) { snprintf(d, sizeof d, "misaligned %u-byte %s in '%s' pc=%p", n, what, r->name, pc); emu_fail("memcheck", d); }
  uint32_t blk = w->block + 1, tid = f->c.lin, e = w->epoch; uint16_t we = w->warps[f->c.warp].epoch;
  for (size_t i = (a - r->lo) >> r->gs, j = (a - r->lo + n - 1) >> r->gs; i <= j; i++) {
    Cell& c = r->c[i];
    bool stale = shared && c.w.blk != blk, ini = r->init_all || (shared ? c.ini == blk : c.ini);
    if ((!write || atomic) && !ini) { snprintf(d, sizeof d, "read of uninitialised '%s' at byte %zu pc=%p", r->name, (size_t)i << r->gs, pc); emu_fail("initcheck", d); }
    if (!stale && !(atomic && c.atom) && conflict(c.w, blk, tid, e, we, shared)) {
      snprintf(d, sizeof d, "%s-after-write on '%s' byte %zu: thread %u of block %u wrote it, no barrier since; pc=%p", what, r->name, (size_t)i << r->gs, c.w.tid - 1, c.w.blk - 1, pc); emu_fail("racecheck", d); }
    if (write) for (Acc* q : {&c.r1, &c.r2}) if (!(shared && q->blk != blk) && conflict(*q, blk, tid, e, we, shared)) {
      snprintf(d, sizeof d, "write-after-read on '%s' byte %zu: thread %u of block %u read it, no barrier since; pc=%p", r->name, (size_t)i << r->gs, q->tid - 1, q->blk - 1, pc); emu_fail("racecheck", d); }
    Acc me{blk, e, (uint16_t)(tid + 1), we};
    if (write) { c.w = me; c.ini = blk; c.atom = atomic; }
    else if (c.r1.tid == me.tid && c.r1.blk == blk) c.r1 = me; else { c.r2 = c.r1; c.r1 = me; }
  }
  if (emu_opts.check >= 2 && !atomic) {
    int kind = write | shared << 1; uint64_t key = ((uint64_t)pc << 12 ^ (uint64_t)kind << 10) + tid; unsigned k = visits[key]++;
    recs[{pc, kind, f->c.warp, k}].push_back({f->c.lane, n, a});
  }
}
void check_mark(void* p, unsigned n, bool init) {
  if (!emu_opts.check) return;
  uintptr_t a = (uintptr_t)p; Region* r = dynm.c && a >= dynm.lo && a < dynm.hi ? &dynm : shm.c && a >= shm.lo && a < shm.hi ? &shm : nullptr;
  if (r) for (size_t i = (a - r->lo) >> r->gs; i <= (a - r->lo + n - 1) >> r->gs; i++) r->c[i].ini = init ? W->block + 1 : 0;
}
extern "C" {
#define RA __builtin_return_address(0)
void emu_atomic(void* p, unsigned n, void* pc) { check_access(p, n, true, pc, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define H(n) void __tsan_read##n(void* p) { check_access(p, n, false, RA); } void __tsan_write##n(void* p) { check_access(p, n, true, RA); }
H(1) H(2) H(4) H(8) H(16)
#define HU(n) void __tsan_unaligned_read##n(void* p) { check_access(p, n, false, RA); } void __tsan_unaligned_write##n(void* p) { check_access(p, n, true, RA); }
HU(2) HU(4) HU(8) HU(16)
void __tsan_read_range(void* p, size_t n) { check_access(p, n, false, RA); }
void __tsan_write_range(void* p, size_t n) { check_access(p, n, true, RA); }
}

// ---- g++ -fsanitize=undefined handlers, ours too (libubsan not linked): become KernelFaults, not process aborts ----
struct ULoc { const char* f; uint32_t l, c; };
static void ub(const char* what, void* data) { if (!W) return; ULoc* u = (ULoc*)data; const char* b = strrchr(u->f, '/'); char d[300];
  snprintf(d, sizeof d, "%s at %s:%u:%u", what, b ? b + 1 : u->f, u->l, u->c); emu_fail("ubcheck", d); }
extern "C" {
#define U1(n, w) void __ubsan_handle_##n(void* d, void*) { ub(w, d); }
#define U2(n, w) void __ubsan_handle_##n(void* d, void*, void*) { ub(w, d); }
U2(add_overflow, "signed overflow in +") U2(sub_overflow, "signed overflow in -") U2(mul_overflow, "signed overflow in *") U1(negate_overflow, "negation overflow")
U2(divrem_overflow, "division by zero or overflow") U2(shift_out_of_bounds, "shift out of range") U1(out_of_bounds, "array index out of its static bound")
U1(load_invalid_value, "invalid bool/enum") U1(float_cast_overflow, "float to int out of range or NaN") U1(vla_bound_not_positive, "vla") U1(nonnull_arg, "nonnull") U1(pointer_overflow, "pointer overflow")
void __ubsan_handle_builtin_unreachable(void* d) { ub("unreachable", d); }
void __ubsan_handle_missing_return(void* d) { ub("missing return", d); }
void __ubsan_handle_type_mismatch_v1(void* d, void* p) { ub(p ? "misaligned pointer" : "null pointer", d); }
}
