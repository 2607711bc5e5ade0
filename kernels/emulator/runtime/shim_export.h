// EMU_EXPORT(symbol, name): make one instantiation callable by the runtime, and say what its parameters are.
#pragma once

template <class T> struct emu_plain { typedef T type; };
template <class T> struct emu_plain<const T> { typedef T type; };
template <class T> struct emu_pointee { typedef T type; static constexpr char pointer = 0; };
template <class T> struct emu_pointee<T*> { typedef T type; static constexpr char pointer = 'p'; };
template <class T> struct emu_pointee<const T*> { typedef T type; static constexpr char pointer = 'c'; };
template <class T> struct emu_kind { static constexpr char value = 'V'; };
#define EMU_KIND(type, letter) template <> struct emu_kind<type> { static constexpr char value = letter; };
EMU_KIND(bool, 'b') EMU_KIND(float, 'f') EMU_KIND(double, 'f') EMU_KIND(char, 'i') EMU_KIND(signed char, 'i')
EMU_KIND(short, 'i') EMU_KIND(int, 'i') EMU_KIND(long, 'i') EMU_KIND(long long, 'i') EMU_KIND(unsigned char, 'u')
EMU_KIND(unsigned short, 'u') EMU_KIND(unsigned, 'u') EMU_KIND(unsigned long, 'u') EMU_KIND(unsigned long long, 'u')
#undef EMU_KIND
template <class T> struct emu_size_of { static constexpr unsigned value = sizeof(T); };
template <> struct emu_size_of<void> { static constexpr unsigned value = 0; };

template <class T> constexpr emu_parameter emu_describe() {
  typedef emu_pointee<typename emu_plain<T>::type> target;
  typedef typename emu_plain<typename target::type>::type value;
  return {emu_kind<value>::value, target::pointer, emu_size_of<value>::value};
}

template <int... index> struct emu_indices {};
template <class... A> struct emu_caller {
  typedef void (*function)(A...);
  template <function f, int... index> EMU_UNCHECKED static void run(void** arguments, emu_indices<index...>) {
    f(*(A*)arguments[index]...);
  }
  template <function f> EMU_UNCHECKED static void call(void** arguments) {
    run<f>(arguments, emu_indices<__integer_pack(sizeof...(A))...>());
  }
  static constexpr emu_parameter parameters[sizeof...(A) + 1] = {emu_describe<A>()..., {0, 0, 0}};
};
template <class... A> emu_caller<A...> emu_caller_of(void (*)(A...));

static thread_local char emu_anchor;  // lies among this object's static shared memory
EMU_UNCHECKED static void* emu_shared_anchor() { return &emu_anchor; }

#define EMU_EXPORT(symbol, ...)                                                                          \
  extern "C" __attribute__((visibility("default"))) emu_kernel symbol = {                                \
      &decltype(emu_caller_of(&__VA_ARGS__))::call<&__VA_ARGS__>, &emu_shared_anchor,                    \
      decltype(emu_caller_of(&__VA_ARGS__))::parameters,                                                 \
      sizeof(decltype(emu_caller_of(&__VA_ARGS__))::parameters) / sizeof(emu_parameter) - 1, {2, 2}};
