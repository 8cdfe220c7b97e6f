// Loops over rows in tiles: small arrays that stay in the first-level cache between the steps of a formula.
//
// A kernel is a named function over a range of rows, compiled once per instruction set (FK_CLONES) and chosen
// when the library is loaded. Everything it calls is always_inline, so that it is compiled with the clone's
// instructions too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/clones.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if FK_HAS_CLONES && FK_VECTOR_BITS >= 512
#define FK_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#elif FK_HAS_CLONES && FK_VECTOR_BITS >= 256
#define FK_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define FK_CLONES
#endif

#define FK_INLINE __attribute__((always_inline)) inline

namespace fisherkernels {

// Storage of a bfloat16 number; arithmetic is done in float.
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Accumulate {
  using type = T;
};
template <>
struct Accumulate<BFloat16> {
  using type = float;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

FK_INLINE float load(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}
FK_INLINE float load(float value) { return value; }
FK_INLINE double load(double value) { return value; }

FK_INLINE void store(float* to, float value) { *to = value; }
FK_INLINE void store(double* to, double value) { *to = value; }
FK_INLINE void store(BFloat16* to, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  to->bits = static_cast<uint16_t>(value != value ? quiet_nan : rounded);
}

constexpr int64_t kTile = 256;

// Outputs of this size go past the caches: an ordinary store first reads the line that it is about to
// overwrite.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Writes a tile to memory. With `stream`, whole 16-byte pieces are written without reading their lines first.
template <typename T, typename A>
FK_INLINE void store_tile(T* to, const A* tile, int64_t n, [[maybe_unused]] bool stream) {
  int64_t j = 0;
#if defined(__SSE2__)
  if (stream && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    if constexpr (std::is_same_v<T, float>) {
      for (; j + 4 <= n; j += 4) _mm_stream_ps(to + j, _mm_loadu_ps(tile + j));
    } else if constexpr (std::is_same_v<T, double>) {
      for (; j + 2 <= n; j += 2) _mm_stream_pd(to + j, _mm_loadu_pd(tile + j));
    }
  }
#endif
  for (; j < n; ++j) store(to + j, tile[j]);
}

// A row-shaped output; empty where it is not wanted.
template <typename T>
struct Output {
  T* data = nullptr;
  bool stream = false;

  FK_INLINE explicit operator bool() const { return data != nullptr; }
  FK_INLINE void write(int64_t offset, const accumulate_t<T>* tile, int64_t n) const {
    store_tile(data + offset, tile, n, stream);
  }
};

// To be called by the thread that streamed, before others read.
FK_INLINE void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Sum of squares of a tile in independent lanes: the order is fixed, the additions vectorise.
template <typename A>
struct Lanes {
  static constexpr int64_t kCount = 128 / sizeof(A);
  A lane[kCount];

  FK_INLINE Lanes() {
    for (int64_t k = 0; k < kCount; ++k) lane[k] = 0;
  }

  template <typename T>
  FK_INLINE void add_squares(const T* tile, int64_t n) {
    int64_t i = 0;
    for (; i + kCount <= n; i += kCount) {
      for (int64_t k = 0; k < kCount; ++k) lane[k] += load(tile[i + k]) * load(tile[i + k]);
    }
    for (int64_t k = 0; i + k < n; ++k) lane[k] += load(tile[i + k]) * load(tile[i + k]);
  }

  FK_INLINE A sum() const {
    A folded[kCount];
    for (int64_t k = 0; k < kCount; ++k) folded[k] = lane[k];
    for (int64_t width = kCount / 2; width > 0; width /= 2) {
      for (int64_t k = 0; k < width; ++k) folded[k] += folded[k + width];
    }
    return folded[0];
  }
};

}  // namespace fisherkernels
