// Vectors of a fixed number of bytes, for kernels whose sums have to stay in registers.
//
// A kernel is a template over the bytes of a vector and its arguments; FK_WIDTHS makes of it a function that
// the loader chooses for the machine: 16 bytes, or 32 with AVX2, or 64 with AVX-512.
//
// Everything a kernel calls is always_inline. Vectors are passed by reference: by value, their calling
// convention would depend on the instruction set.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/vector.h"

// void name(const Arguments&, int64_t begin, int64_t end) from template <int kBytes> name##_of(the same).
#if FK_HAS_CLONES && FK_VECTOR_BITS >= 512
#define FK_WIDTHS(name, Arguments)                \
  FK_WIDTH("default", name, Arguments, 16)        \
  FK_WIDTH("arch=x86-64-v3", name, Arguments, 32) \
  FK_WIDTH("arch=x86-64-v4", name, Arguments, 64)
#elif FK_HAS_CLONES && FK_VECTOR_BITS >= 256
#define FK_WIDTHS(name, Arguments)         \
  FK_WIDTH("default", name, Arguments, 16) \
  FK_WIDTH("arch=x86-64-v3", name, Arguments, 32)
#else
#define FK_WIDTHS(name, Arguments) \
  void name(const Arguments& arguments, int64_t begin, int64_t end) { name##_of<16>(arguments, begin, end); }
#endif
#define FK_WIDTH(isa, name, Arguments, bytes)                                                               \
  __attribute__((target(isa), noclone)) void name(const Arguments& arguments, int64_t begin, int64_t end) { \
    name##_of<bytes>(arguments, begin, end);                                                                \
  }

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

// bfloat16 numbers become a vector of float, and back.
template <typename V>
FK_INLINE void load_vector(V& to, const BFloat16* from) {
  using Bits = Vector<uint32_t, sizeof(V)>;
  Vector<uint16_t, sizeof(V) / 2> half;
  memcpy(&half, from, sizeof(half));
  const Bits bits = __builtin_convertvector(half, Bits) << 16;
  memcpy(&to, &bits, sizeof(V));
}

// The lower half of each element.
template <int kBytes, size_t... I>
FK_INLINE void lower_halves(Vector<uint16_t, kBytes / 2>& to, const Vector<uint32_t, kBytes>& from,
                            std::index_sequence<I...>) {
  Vector<uint16_t, kBytes> halves;
  memcpy(&halves, &from, kBytes);
  to = __builtin_shufflevector(halves, halves, (2 * I)...);
}

// As store() rounds a number.
template <typename V>
FK_INLINE void store_vector(BFloat16* to, const V& from) {
  using Bits = Vector<uint32_t, sizeof(V)>;
  Bits bits;
  memcpy(&bits, &from, sizeof(V));
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet_nan = (bits >> 16) | 0x40u;
  Vector<uint16_t, sizeof(V) / 2> halves;
  lower_halves<sizeof(V)>(halves, from != from ? quiet_nan : rounded,
                          std::make_index_sequence<sizeof(V) / sizeof(float)>());
  memcpy(to, &halves, sizeof(halves));
}

template <typename V>
constexpr int64_t lane_count = sizeof(V) / sizeof(V{}[0]);

// Element j on of a row of n; `fill` where it has no more.
template <typename V, typename T>
FK_INLINE void load_row(V& to, const T* row, int64_t j, int64_t n, T fill) {
  if (j + lane_count<V> <= n) return load_vector(to, row + j);
  to = V{} + fill;
  std::memcpy(&to, row + j, static_cast<size_t>(n - j) * sizeof(T));
}

template <typename V>
FK_INLINE auto sum_of(const V& v) {
  auto sum = v[0];
  for (int64_t i = 1; i < lane_count<V>; ++i) sum += v[i];
  return sum;
}

// The elements before `end` of an array; zeros where it has none.
template <typename V, typename T>
FK_INLINE void load_before(V& to, const T* array, int64_t end) {
  constexpr int64_t kLanes = lane_count<V>;
  if (end >= kLanes) return load_vector(to, array + end - kLanes);
  accumulate_t<T> numbers[kLanes] = {};
  for (int64_t i = 0; i < end; ++i) numbers[kLanes - end + i] = load(array[i]);
  memcpy(&to, numbers, sizeof(V));
}

// The last n lanes, n at most their number, to the elements before `end`.
template <typename V, typename T>
FK_INLINE void store_before(T* array, int64_t end, const V& from, int64_t n) {
  constexpr int64_t kLanes = lane_count<V>;
  if (n == kLanes) return store_vector(array + end - kLanes, from);
  accumulate_t<T> numbers[kLanes];
  memcpy(numbers, &from, sizeof(V));
  for (int64_t k = kLanes - n; k < kLanes; ++k) store(array + end - kLanes + k, numbers[k]);
}

// Zero in all but the last n lanes.
template <typename V>
FK_INLINE void keep_last(V& v, int64_t n) {
  constexpr int64_t kLanes = lane_count<V>;
  using Bits = decltype(V{} < V{});
  using Element = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<Bits&>()[0])>>;
  constexpr auto kMask = [] {
    std::array<Element, 2 * kLanes> mask{};
    for (int64_t k = kLanes; k < 2 * kLanes; ++k) mask[k] = -1;
    return mask;
  }();
  Bits bits, mask;
  memcpy(&bits, &v, sizeof(V));
  memcpy(&mask, kMask.data() + n, sizeof(V));
  bits &= mask;
  memcpy(&v, &bits, sizeof(V));
}

// Stores past the caches; `to` on a multiple of the vector's bytes.
template <typename V, typename T>
FK_INLINE void stream_vector(T* to, const V& from) {
  if constexpr (sizeof(T) < sizeof(float)) {
    store_vector(to, from);
  } else {
#if defined(__x86_64__)
    if constexpr (sizeof(V) == 16) {
      asm("movntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "x"(from));
    } else {
      asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "v"(from));
    }
#else
    store_vector(to, from);
#endif
  }
}

// The largest magnitude of the numbers seen, read from their bits: NaN counts as more than infinity.
template <typename V>
struct Magnitude {
  using T = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;
  using Bits = decltype(V{} < V{});  // signed integers of the same size
  Bits largest{};

  FK_INLINE void add(const V& v) {
    Bits bits;
    memcpy(&bits, &v, sizeof(V));
    bits &= std::numeric_limits<std::remove_reference_t<decltype(bits[0])>>::max();
    largest = largest > bits ? largest : bits;
  }

  FK_INLINE bool within(T limit) const {
    std::remove_reference_t<decltype(std::declval<Bits&>()[0])> bits;
    memcpy(&bits, &limit, sizeof(T));
    const Bits beyond = largest > bits;
    bool any = false;
    for (size_t k = 0; k < sizeof(V) / sizeof(T); ++k) any |= beyond[k] != 0;
    return !any;
  }
};

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
