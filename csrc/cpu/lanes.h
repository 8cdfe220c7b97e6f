// Vectors of a fixed number of bytes, for kernels whose sums have to stay in registers.
//
// A kernel is a template over the bytes of a vector and its arguments; FK_WIDTHS makes of it a function that
// the loader chooses for the machine: 16 bytes, or 32 with AVX2, or 64 with AVX-512.
//
// Everything a kernel calls is always_inline. Vectors are passed by reference: by value, their calling
// convention would depend on the instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/vector.h"

// void name(const Arguments&, int64_t begin, int64_t end) from template <int kBytes> name##_of(the same).
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FK_WIDTHS(name, Arguments)                \
  FK_WIDTH("default", name, Arguments, 16)        \
  FK_WIDTH("arch=x86-64-v3", name, Arguments, 32) \
  FK_WIDTH("arch=x86-64-v4", name, Arguments, 64)
#define FK_WIDTH(isa, name, Arguments, bytes)                                                               \
  __attribute__((target(isa), noclone)) void name(const Arguments& arguments, int64_t begin, int64_t end) { \
    name##_of<bytes>(arguments, begin, end);                                                                \
  }
#else
#define FK_WIDTHS(name, Arguments) \
  void name(const Arguments& arguments, int64_t begin, int64_t end) { name##_of<16>(arguments, begin, end); }
#endif

namespace fisherkernels {

template <typename T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <typename T, int kBytes>
using Vector = typename VectorOf<T, kBytes>::type;

template <typename V, typename T>
FK_INLINE void load_vector(V& to, const T* from) {
  memcpy(&to, from, sizeof(V));
}

template <typename V, typename T>
FK_INLINE void store_vector(T* to, const V& from) {
  memcpy(to, &from, sizeof(V));
}

// The sum of the two halves of a vector.
template <typename T, int kBytes, size_t... I>
FK_INLINE void fold(Vector<T, kBytes / 2>& to, const Vector<T, kBytes>& v, std::index_sequence<I...>) {
  to = __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + sizeof...(I))...);
}

// out[q] += the sum of the elements of v[q], q = 0..3: vectors are folded to four elements, then transposed.
template <typename T, int kBytes>
FK_INLINE void add_sums(T* out, const Vector<T, kBytes> (&v)[4]) {
  constexpr int kLanes = kBytes / sizeof(T);
  if constexpr (kLanes > 4) {
    Vector<T, kBytes / 2> half[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) fold<T, kBytes>(half[q], v[q], std::make_index_sequence<kLanes / 2>());
    add_sums<T, kBytes / 2>(out, half);
  } else if constexpr (kLanes == 4) {
    const Vector<T, kBytes> ab =
        __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) + __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const Vector<T, kBytes> cd =
        __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) + __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    Vector<T, kBytes> sum;
    load_vector(sum, out);
    sum += __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    store_vector(out, sum);
  } else {
    static_assert(kLanes == 2);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) out[q] += v[q][0] + v[q][1];
  }
}

}  // namespace fisherkernels
