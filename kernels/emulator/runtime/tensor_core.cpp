// Matrix instructions of a warp: mma.sync and ldmatrix, in the fragment layouts of the PTX ISA (section "Matrix
// multiply-accumulate operation using mma instruction"). Below, group = lane / 4 and member = lane % 4.
//
// Products are exact in double and their sum is rounded once, where the hardware rounds sums in an order of its own:
// results are equal wherever the sums are exact (small integers) and close elsewhere.
#include "state.h"

namespace {

float from_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
float tf32(unsigned bits) { return from_bits(bits & ~0x1fffu); }  // the hardware passes over the lowest 13 bits
float bf16(unsigned pair, int half) { return from_bits(half ? pair & 0xffff0000u : pair << 16); }

struct Operands {
  unsigned a[4], b[2];
};

const Operands* gather_operands(const unsigned* a, const unsigned* b, const void* place) {
  Operands own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  return (const Operands*)gather(emu_matrix, ~0u, &own, sizeof own, place);
}

// d[i] is D[group + 8 (i / 2)][2 member + i % 2].
template <int depth, class A, class B>
void accumulate(float* d, A a, B b) {
  unsigned lane = worker->running->lane;
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = d[i];
    for (int k = 0; k < depth; k++) sum += (double)a(row, k) * b(k, column);
    d[i] = (float)sum;
  }
}

}  // namespace

extern "C" {

// D (16x8) += A (16x8) B (8x8). a[i] = A[group + 8 (i % 2)][member + 4 (i / 2)], b[i] = B[member + 4 i][group].
void emu_mma_m16n8k8_tf32(float* d, const unsigned* a, const unsigned* b) {
  const Operands* of_lane = gather_operands(a, b, CALLER);
  accumulate<8>(
      d, [=](int row, int k) { return tf32(of_lane[row % 8 * 4 + k % 4].a[row / 8 + 2 * (k / 4)]); },
      [=](int k, int column) { return tf32(of_lane[column * 4 + k % 4].b[k / 4]); });
}

// D (16x8) += A (16x16) B (16x8), two values a register, that of the lower k in its lower half:
// a[i] = A[group + 8 (i % 2)][2 member + 8 (i / 2) + {0, 1}], b[i] = B[2 member + 8 i + {0, 1}][group].
void emu_mma_m16n8k16_bf16(float* d, const unsigned* a, const unsigned* b) {
  const Operands* of_lane = gather_operands(a, b, CALLER);
  accumulate<16>(
      d, [=](int row, int k) { return bf16(of_lane[row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], k % 2); },
      [=](int k, int column) { return bf16(of_lane[column * 4 + k % 8 / 2].b[k / 8], k % 2); });
}

// ldmatrix.m8n8.x{1,2,4}.b16: lane 8 m + r gives the address of row r (16 bytes) of matrix m. out[m] holds
// M[group][2 member + {0, 1}], or transposed M[2 member + {0, 1}][group].
void emu_ldmatrix(unsigned* out, const void* row, int matrices, bool transposed) {
  const void* place = CALLER;
  int lane = worker->running->lane, group = lane / 4, member = lane % 4;
  if (lane < 8 * matrices) {
    if ((uintptr_t)row % 16) fault("memcheck", "misaligned row of ldmatrix at " PLACE, place);
    check_access(row, 16, Access::read, place);
  }
  auto rows = (const unsigned short* const*)gather(emu_matrix, ~0u, &row, sizeof row, place);
  for (int m = 0; m < matrices; m++) {
    auto element = [=](int r, int c) { return (unsigned)rows[8 * m + r][c]; };
    out[m] = transposed ? element(2 * member, group) | element(2 * member + 1, group) << 16
                        : element(group, 2 * member) | element(group, 2 * member + 1) << 16;
  }
}

}  // extern "C"
