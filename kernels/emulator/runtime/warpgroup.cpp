// wgmma (sm_90a): the 128 threads of a warpgroup multiply tiles that stand in shared memory.
//
// A descriptor of 64 bits says where a tile is. Bits 0-13: its start, 16-29: the leading offset, 32-45: the stride
// offset, all in units of 16 bytes; 49-51: the base offset, which must be 0 here, so that a swizzled tile starts where
// its pattern does; 62-63: the swizzle, 0 none, 1 of 128 bytes, 2 of 64, 3 of 32. A swizzle of w bytes exchanges the
// 16-byte chunks of a row: chunk c of row r stands at c xor (r / (128 / w)), with r and c read from the address itself.
//
// K-major (the depth is contiguous), 8 rows a core matrix:
//   none:      row r, chunk c of the depth at  r % 8 * 16 + r / 8 * stride + c * leading
//   swizzled:  r % 8 * w + r / 8 * stride + c * 16
// Transposed (the rows of A, or columns of B, are contiguous; bfloat16 only), e = row / 8 and k along the depth:
//   none:      e * stride + k % 8 * 16 + k / 8 * leading
//   swizzled:  e % (w / 16) * 16 + e / (w / 16) * leading + k % 8 * w + k / 8 * stride
//
// The instruction is asynchronous. Its sums are NaN until wgmma.wait_group has waited for its group, and the checker
// faults at who touches them before. Tiles are read when the first thread issues the instruction, and must still stand
// unchanged when it is waited for. Threads that wrote a tile must have done a fence.proxy.async since, and a barrier
// must lie in between; sums need a wgmma.fence before the first wgmma that uses them.
#include <algorithm>
#include <cmath>

#include "state.h"

namespace {

constexpr int rows_of_a = 64, chunk_bytes = 16;

struct Tile {
  size_t start, leading, stride;
  int width;  // of the swizzle, in bytes; 16 means none

  explicit Tile(unsigned long long d, const void* place)
      : start((d & 0x3fff) * 16), leading((d >> 16 & 0x3fff) * 16), stride((d >> 32 & 0x3fff) * 16) {
    static const int widths[] = {16, 128, 64, 32};
    width = widths[d >> 62];
    if (d >> 49 & 7) fault("memcheck", "wgmma: a descriptor with a base offset isn't emulated, at " PLACE, place);
    if (width > 16 && start % (8 * width) >= (size_t)width)
      fault("memcheck", "wgmma: a tile at shared address %zu doesn't start where a swizzle of %d bytes does, at " PLACE,
            start, width, place);
  }

  // Where the chunk stands that holds (row, k) of a tile whose elements are `size` bytes long.
  size_t chunk(int row, int k, int size, bool transposed) const {
    size_t offset;
    if (!transposed) {
      int c = k * size / chunk_bytes;
      offset =
          width == 16 ? row % 8 * 16 + row / 8 * stride + c * leading : row % 8 * width + row / 8 * stride + c * 16;
    } else {
      int e = row / 8, across = width / 16;
      offset = width == 16 ? e * stride + k % 8 * 16 + k / 8 * leading
                           : e % across * 16 + e / across * leading + k % 8 * width + k / 8 * stride;
    }
    size_t address = start + offset;
    return address ^ ((address >> 7 & (width / 16 - 1)) << 4);
  }
};

float value_at(const char* place, int size) {
  unsigned bits = 0;
  memcpy(&bits, place, size);
  return size == 4 ? tf32(bits) : bf16(bits, 0);
}

// Rows of B's tile are columns of B.
void read_operand(Operand& operand, int rows, int depth, int size, bool is_b, const void* place) {
  Tile tile(operand.descriptor, place);
  operand.values.resize(rows * depth);
  for (int row = 0; row < rows; row++)
    for (int k = 0; k < depth; k++) {
      size_t bytes = 0;
      const char* chunk = from_shared_address(tile.chunk(row, k, size, operand.transposed), &bytes);
      if (!chunk || bytes < chunk_bytes)
        fault("memcheck", "wgmma's descriptor leads out of shared memory, for row %d and depth %d, at " PLACE, row, k,
              place);
      int within = (operand.transposed ? row : k) * size % chunk_bytes;
      operand.values[is_b ? k * rows + row : row * depth + k] = value_at(chunk + within, size);
      if (within == 0) {
        operand.places.push_back(chunk);
        operand.bytes.insert(operand.bytes.end(), chunk, chunk + chunk_bytes);
      }
    }
}

// This thread's share of the tile, as far as the checker is concerned: written, visible and unchanged since `epoch`.
void check_operand(const Operand& operand, uint32_t epoch, const void* place) {
  if (!worker->launch->checked) return;
  for (size_t i = worker->running->thread % warpgroup_size; i < operand.places.size(); i += warpgroup_size) {
    if (memcmp(operand.places[i], &operand.bytes[i * chunk_bytes], chunk_bytes))
      fault("racecheck", "a tile that wgmma reads was changed before it was waited for at " PLACE, place);
    check_tile(operand.places[i], chunk_bytes, epoch, place);
  }
}

PendingSums& sums_of(Fiber& fiber, float* d, int count, const void* place) {
  for (PendingSums& sums : fiber.sums)
    if (sums.target == d) return sums;
  if (!fiber.sums_fenced) fault("racecheck", "wgmma without a wgmma.fence before it, at " PLACE, place);
  fiber.sums.push_back({d, std::vector<float>(d, d + count), 0});
  std::fill(d, d + count, NAN);
  return fiber.sums.back();
}

// d[i] is D[16 warp + group + 8 (i / 2 % 2)][8 (i / 4) + 2 member + i % 2], warp of the warpgroup: for each 8 columns a
// thread has two neighbours in an upper and a lower row.
void add_product(PendingSums& sums, const WarpgroupProduct& product, unsigned thread) {
  typedef double Pair __attribute__((vector_size(16)));
  int upper_row = thread % warpgroup_size / warp_size * 16 + thread % warp_size / 4, member = thread % 4;
  Pair upper[32], lower[32];
  int pairs = product.columns / 8;
  for (int i = 0; i < pairs; i++) {
    const float* d = &sums.values[4 * i];
    upper[i] = product.accumulate ? Pair{d[0], d[1]} : Pair{0, 0};
    lower[i] = product.accumulate ? Pair{d[2], d[3]} : Pair{0, 0};
  }
  for (int k = 0; k < product.depth; k++) {
    double a = product.a.values[upper_row * product.depth + k],
           a_below = product.a.values[(upper_row + 8) * product.depth + k];
    for (int i = 0; i < pairs; i++) {
      Pair b;
      memcpy(&b, &product.b.values[k * product.columns + 8 * i + 2 * member], sizeof b);
      upper[i] += a * b;
      lower[i] += a_below * b;
    }
  }
  for (int i = 0; i < pairs; i++)
    for (int j = 0; j < 4; j++) sums.values[4 * i + j] = (float)(j < 2 ? upper[i][j] : lower[i][j - 2]);
}

void multiply(float* d, int columns, int size, const Operand& a, const Operand& b, bool accumulate, const void* place) {
  Fiber& fiber = *worker->running;
  size_t group = fiber.thread / warpgroup_size;
  if (columns < 8 || columns > 256 || columns % 8) fault("memcheck", "wgmma of %d columns at " PLACE, columns, place);
  if (group >= worker->warpgroups.size())
    fault("synccheck", "wgmma in a warpgroup of fewer than 128 threads at " PLACE, place);
  Warpgroup& warpgroup = worker->warpgroups[group];
  size_t number = fiber.products_issued++;
  if (number == warpgroup.first + warpgroup.products.size()) {
    WarpgroupProduct product{columns, 32 / size, accumulate, a, b};
    read_operand(product.a, rows_of_a, product.depth, size, false, place);
    read_operand(product.b, columns, product.depth, size, true, place);
    warpgroup.products.push_back(std::move(product));
  }
  const WarpgroupProduct& product = warpgroup.products[number - warpgroup.first];
  if (product.columns != columns || product.depth != 32 / size || product.accumulate != accumulate ||
      product.a.descriptor != a.descriptor || product.b.descriptor != b.descriptor ||
      product.a.transposed != a.transposed || product.b.transposed != b.transposed)
    fault("synccheck", "threads of a warpgroup issue different wgmma, this one at " PLACE, place);
  check_operand(product.a, present_epoch(), place);
  check_operand(product.b, present_epoch(), place);
  PendingSums& sums = sums_of(fiber, d, columns / 2, place);
  if (sums.values.size() != (size_t)columns / 2)
    fault("racecheck", "wgmma of another shape on sums that are under way, at " PLACE, place);
  sums.group = fiber.product_groups;
  fiber.products.push_back({number, fiber.product_groups, present_epoch()});
  add_product(sums, product, fiber.thread);
}

void finish_product(const PendingProduct& pending, Warpgroup& warpgroup, const void* place) {
  WarpgroupProduct& product = warpgroup.products[pending.number - warpgroup.first];
  check_operand(product.a, pending.epoch, place);
  check_operand(product.b, pending.epoch, place);
  product.finished++;
  while (!warpgroup.products.empty() && warpgroup.products.front().finished == warpgroup_size) {
    warpgroup.products.pop_front();
    warpgroup.first++;
  }
}

}  // namespace

extern "C" {

void emu_wgmma_fence() { worker->running->sums_fenced = true; }
void emu_wgmma_commit() { worker->running->product_groups++; }

// Complete all groups of this thread's but the last `pending`.
void emu_wgmma_wait(unsigned pending) {
  Fiber& fiber = *worker->running;
  const void* place = CALLER;
  if (fiber.products.empty()) return;
  Warpgroup& warpgroup = worker->warpgroups[fiber.thread / warpgroup_size];
  auto done = [&](unsigned group) { return group + pending < fiber.product_groups; };
  for (const PendingProduct& product : fiber.products)
    if (done(product.group)) finish_product(product, warpgroup, place);
  std::erase_if(fiber.products, [&](const PendingProduct& product) { return done(product.group); });
  for (const PendingSums& sums : fiber.sums)
    if (done(sums.group)) std::copy(sums.values.begin(), sums.values.end(), sums.target);
  std::erase_if(fiber.sums, [&](const PendingSums& sums) { return done(sums.group); });
  if (fiber.sums.empty()) fiber.sums_fenced = false;  // their registers may be used again
}

void emu_wgmma_tf32(float* d, int columns, unsigned long long a, unsigned long long b, bool accumulate) {
  multiply(d, columns, 4, {a, false, {}, {}, {}}, {b, false, {}, {}, {}}, accumulate, CALLER);
}
void emu_wgmma_bf16(float* d, int columns, unsigned long long a, unsigned long long b, bool accumulate,
                    bool transpose_a, bool transpose_b) {
  multiply(d, columns, 2, {a, transpose_a, {}, {}, {}}, {b, transpose_b, {}, {}, {}}, accumulate, CALLER);
}

void emu_fence_proxy_async() { worker->running->proxy_fences++; }

}  // extern "C"
