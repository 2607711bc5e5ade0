// What g++ calls from code compiled with -fsanitize=thread and -fsanitize=undefined. Neither of its libraries is
// linked: accesses go to the checker, and undefined arithmetic becomes a fault.
#include "state.h"

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define EMU_ACCESS(size)                                                                                \
  void __tsan_read##size(void* address) { check_access(address, size, Access::read, CALLER); }          \
  void __tsan_write##size(void* address) { check_access(address, size, Access::write, CALLER); }        \
  void __tsan_volatile_read##size(void* address) { check_access(address, size, Access::read, CALLER); } \
  void __tsan_volatile_write##size(void* address) { check_access(address, size, Access::write, CALLER); }
#define EMU_UNALIGNED(size)                                                                              \
  void __tsan_unaligned_read##size(void* address) { check_access(address, size, Access::read, CALLER); } \
  void __tsan_unaligned_write##size(void* address) { check_access(address, size, Access::write, CALLER); }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
EMU_UNALIGNED(2)
EMU_UNALIGNED(4)
EMU_UNALIGNED(8)
EMU_UNALIGNED(16)
#undef EMU_ACCESS
#undef EMU_UNALIGNED
void __tsan_read_range(void* address, size_t size) { check_access(address, size, Access::read, CALLER); }
void __tsan_write_range(void* address, size_t size) { check_access(address, size, Access::write, CALLER); }

// Static initialisers run without a worker, and are no kernel's.
#define EMU_UNDEFINED(name, parameters, kind, text)     \
  void __ubsan_handle_##name parameters {               \
    if (worker) fault(kind, text " at " PLACE, CALLER); \
  }
EMU_UNDEFINED(add_overflow, (void*, void*, void*), "overflow", "signed integer overflow in a sum")
EMU_UNDEFINED(sub_overflow, (void*, void*, void*), "overflow", "signed integer overflow in a difference")
EMU_UNDEFINED(mul_overflow, (void*, void*, void*), "overflow", "signed integer overflow in a product")
EMU_UNDEFINED(negate_overflow, (void*, void*), "overflow", "signed integer overflow in a negation")
EMU_UNDEFINED(divrem_overflow, (void*, void*, void*), "overflow", "division by zero, or of the least integer by -1,")
EMU_UNDEFINED(shift_out_of_bounds, (void*, void*, void*), "overflow",
              "shift by a negative number, or by too many bits,")
EMU_UNDEFINED(float_cast_overflow, (void*, void*), "overflow",
              "a number, infinity or NaN that the integer type lacks, cast to it")
EMU_UNDEFINED(out_of_bounds, (void*, void*), "memcheck", "index outside an array's declared extent")
EMU_UNDEFINED(type_mismatch_v1, (void*, void*), "memcheck", "misaligned access")
EMU_UNDEFINED(builtin_unreachable, (void*), "trap", "__builtin_unreachable was reached")
#undef EMU_UNDEFINED

}  // extern "C"
