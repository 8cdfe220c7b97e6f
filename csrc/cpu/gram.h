// Products of rows: left rows times right rows, both contiguous in the index that is summed over.
#pragma once

#include "cpu/lanes.h"

namespace fisherkernels {

constexpr int64_t kRightRows = 4;  // right rows come in blocks of this many
constexpr int64_t kLeftRows = 3;   // left rows in blocks of at most this many: 3 * 4 sums stay in registers

// out[r][q] += Σ_c left[r][c] right[q][c] for kRows left and kRightRows right rows of n elements, n a
// multiple of the vector's elements. The order of the sum depends on n and the width alone.
template <typename T, int kBytes, int kRows>
FK_INLINE void multiply_block(T* out, int64_t out_stride, const T* left, const T* right, int64_t stride,
                              int64_t n) {
  using V = Vector<T, kBytes>;
  V sum[kRows][kRightRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q < kRightRows; ++q) sum[r][q] = V{};
  }
  for (int64_t c = 0; c < n; c += kBytes / sizeof(T)) {
    V l[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) load_vector(l[r], left + r * stride + c);
#pragma GCC unroll 4
    for (int q = 0; q < kRightRows; ++q) {
      V v;
      load_vector(v, right + q * stride + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][q] += l[r] * v;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) add_sums<T, kBytes>(out + r * out_stride, sum[r]);
}

// Rows that the next tile is going to read, asked for a few cache lines at a time while this tile is computed
// with.
struct Ahead {
  const char* row;
  int64_t by_row, rows, bytes;  // rows: 0 where there is nothing to ask for
  int64_t lines;                // to ask for with every block
  int64_t offset = 0;           // within the row

  FK_INLINE void ask() {
    constexpr int64_t kLine = 64;
    for (int64_t i = 0; i < lines && rows > 0; ++i) {
      __builtin_prefetch(row + offset, 0, 2);
      offset += kLine;
      if (offset >= bytes) {
        offset = 0;
        row += by_row;
        --rows;
      }
    }
  }
};

// Left rows times right rows: out[r][q] += Σ_c left[r][c] right[q][c].
template <typename T>
struct Products {
  T* out;
  int64_t out_stride;
  const T* left;
  int64_t left_rows;  // at most kLeftRows
  const T* right;     // rows up to the next multiple of kRightRows are there, as are the columns of out
  int64_t stride, n;  // of left and right rows; n a multiple of the vector's elements
  Ahead* ahead;
};

// Right rows begin..end, begin a multiple of kRightRows.
template <int kBytes, typename T>
FK_INLINE void multiply_rows_of(const Products<T>& p, int64_t begin, int64_t end) {
  for (int64_t q = begin; q < end; q += kRightRows) {
    const T* right = p.right + q * p.stride;
    p.ahead->ask();
    if (p.left_rows == 3) {
      multiply_block<T, kBytes, 3>(p.out + q, p.out_stride, p.left, right, p.stride, p.n);
    } else if (p.left_rows == 2) {
      multiply_block<T, kBytes, 2>(p.out + q, p.out_stride, p.left, right, p.stride, p.n);
    } else {
      multiply_block<T, kBytes, 1>(p.out + q, p.out_stride, p.left, right, p.stride, p.n);
    }
  }
}

// Rows copied side by side, with zeros from n to padded_n.
template <typename T>
struct RowCopy {
  T* to;
  int64_t to_stride;
  const T* from;
  int64_t by_row, by_column, n, padded_n;
};

// The loop over vectors does what memcpy would do with a string instruction that takes longer to start.
template <int kBytes, typename T>
FK_INLINE void copy_rows_of(const RowCopy<T>& c, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  const int64_t whole = c.by_column == 1 ? c.n / kLanes * kLanes : 0;
  for (int64_t row = begin; row < end; ++row) {
    const T* from = c.from + row * c.by_row;
    T* to = c.to + row * c.to_stride;
    for (int64_t i = 0; i < whole; i += kLanes) {
      Vector<T, kBytes> v;
      load_vector(v, from + i);
      store_vector(to + i, v);
    }
    for (int64_t i = whole; i < c.n; ++i) to[i] = from[i * c.by_column];
    for (int64_t i = c.n; i < c.padded_n; ++i) to[i] = 0;
  }
}

}  // namespace fisherkernels
