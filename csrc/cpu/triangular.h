// Cholesky factorisation and triangular solves of one matrix, in blocks of four rows.
//
// The upper factor U = Lᵀ and the lower factor L both lie in rows of `stride` elements, at least padded(d)
// and with zeros behind the matrix, and in rounded(d) rows: vectors run past the end of a row's part into
// padding or into elements that are multiplied by zero.
#pragma once

#include "cpu/lanes.h"
#include "math/cholesky.h"

namespace fisherkernels {

constexpr int64_t kBlockRows = 4;
constexpr int64_t kWidest = 64;       // bytes of the widest vector
constexpr int64_t kFactorPanel = 64;  // rows whose update of the rows below stays in the cache

FK_INLINE int64_t rounded(int64_t size) { return (size + kBlockRows - 1) / kBlockRows * kBlockRows; }

// Elements of a row: two of the widest vectors can start at any of the `size` first ones.
template <typename T>
FK_INLINE int64_t padded(int64_t size) {
  constexpr int64_t kElements = kWidest / sizeof(T);
  return (size + kElements - 1) / kElements * kElements + 2 * kElements;
}

// The four diagonal elements and the six below, of a block of four rows and columns.
template <typename T>
struct DiagonalBlock {
  T inverse[4];
  T below[4][4];
};

// Rows first..first+3 of U, columns first + kBytes * m: minus Σ_k U[k][row] U[k][column], k = begin..end-1,
// and then, with `block`, the forward substitution with the diagonal block.
template <typename T, int kBytes, int kVectors, bool kSubstitute>
FK_INLINE void update_columns(T* upper, int64_t stride, int64_t first, int64_t column, int64_t begin,
                              int64_t end, const DiagonalBlock<T>& block) {
  using V = Vector<T, kBytes>;
  constexpr int kLanes = kBytes / sizeof(T);
  V v[4][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 2
    for (int m = 0; m < kVectors; ++m)
      load_vector(v[r][m], upper + (first + r) * stride + column + m * kLanes);
  }
  for (int64_t k = begin; k < end; ++k) {
    const T* row = upper + k * stride;
    V u[kVectors];
#pragma GCC unroll 2
    for (int m = 0; m < kVectors; ++m) load_vector(u[m], row + column + m * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 2
      for (int m = 0; m < kVectors; ++m) v[r][m] -= row[first + r] * u[m];
    }
  }
  if constexpr (kSubstitute) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 2
      for (int m = 0; m < kVectors; ++m) {
#pragma GCC unroll 4
        for (int q = 0; q < r; ++q) v[r][m] -= block.below[r][q] * v[q][m];
        v[r][m] *= block.inverse[r];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 2
    for (int m = 0; m < kVectors; ++m)
      store_vector(upper + (first + r) * stride + column + m * kLanes, v[r][m]);
  }
}

template <typename T, int kBytes, bool kSubstitute>
FK_INLINE void update_rows(T* upper, int64_t stride, int64_t first, int64_t size, int64_t begin, int64_t end,
                           const DiagonalBlock<T>& block) {
  constexpr int kLanes = kBytes / sizeof(T);
  int64_t column = first;
  for (; column + kLanes < size; column += 2 * kLanes) {
    update_columns<T, kBytes, 2, kSubstitute>(upper, stride, first, column, begin, end, block);
  }
  for (; column < size; column += kLanes) {
    update_columns<T, kBytes, 1, kSubstitute>(upper, stride, first, column, begin, end, block);
  }
}

// The Cholesky factor of the diagonal block at `first` after its update, in scalars.
template <typename T>
FK_INLINE void factor_diagonal(const T* upper, int64_t stride, int64_t first, int64_t begin,
                               DiagonalBlock<T>& block) {
  T a[4][4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q <= r; ++q) a[r][q] = upper[(first + q) * stride + first + r];
  }
  for (int64_t k = begin; k < first; ++k) {
    const T* row = upper + k * stride + first;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q <= r; ++q) a[r][q] -= row[r] * row[q];
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    block.inverse[q] = inverse_root(a[q][q]);
#pragma GCC unroll 4
    for (int r = q + 1; r < 4; ++r) {
      block.below[r][q] = a[r][q] * block.inverse[q];
#pragma GCC unroll 4
      for (int p = q + 1; p <= r; ++p) a[r][p] -= block.below[r][q] * block.below[p][q];
    }
  }
}

// U of UᵀU = A in place of A's upper triangle, and the inverses of U's diagonal; false where A is not
// positive definite or not finite. Rows from `size` to the next multiple of four must hold the identity.
template <typename T, int kBytes>
FK_INLINE bool factor_upper(T* upper, int64_t stride, int64_t size, T* inverse) {
  DiagonalBlock<T> block{};
  bool usable = true;
  for (int64_t panel = 0; panel < size; panel += kFactorPanel) {
    const int64_t panel_end = std::min(panel + kFactorPanel, size);
    for (int64_t first = panel; first < panel_end; first += kBlockRows) {
      factor_diagonal(upper, stride, first, panel, block);
      update_rows<T, kBytes, true>(upper, stride, first, size, panel, first, block);
      for (int r = 0; r < kBlockRows; ++r) {
        inverse[first + r] = block.inverse[r];
        usable = usable && block.inverse[r] == block.inverse[r];
      }
    }
    for (int64_t first = panel_end; first < size; first += kBlockRows) {
      update_rows<T, kBytes, false>(upper, stride, first, size, panel, panel_end, block);
    }
  }
  return usable;
}

// L from U: rows of L with zeros behind the diagonal.
template <typename T>
FK_INLINE void transpose_upper(T* lower, const T* upper, int64_t stride, int64_t size) {
  const int64_t rows = rounded(size);
  for (int64_t first = 0; first < rows; first += kBlockRows) {
    T* to = lower + first * stride;
    for (int64_t k = 0; k < first + kBlockRows; ++k) {
      const T* from = upper + k * stride + first;
#pragma GCC unroll 4
      for (int r = 0; r < kBlockRows; ++r) to[r * stride + k] = from[r];
    }
    for (int r = 0; r < kBlockRows; ++r) {
      for (int64_t k = first + r + 1; k < stride; ++k) to[r * stride + k] = 0;
    }
  }
}

// b becomes (L Lᵀ)⁻¹ b; y has room for padded(size) elements, both are zero from `size` on.
template <typename T, int kBytes>
FK_INLINE void solve_lower(const T* lower, int64_t stride, int64_t size, const T* inverse, T* b, T* y) {
  using V = Vector<T, kBytes>;
  constexpr int kLanes = kBytes / sizeof(T);
  const int64_t rows = rounded(size);
  for (int64_t i = 0; i < rows + kLanes; ++i)
    y[i] = 0;  // so that vectors may run into columns not yet solved for
  for (int64_t first = 0; first < rows; first += kBlockRows) {
    const T* row = lower + first * stride;
    V sum[4] = {V{}, V{}, V{}, V{}};
    for (int64_t i = 0; i < first; i += kLanes) {
      V solved;
      load_vector(solved, y + i);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        V l;
        load_vector(l, row + r * stride + i);
        sum[r] -= l * solved;
      }
    }
    add_sums<T, kBytes>(b + first, sum);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      T value = b[first + r];
#pragma GCC unroll 4
      for (int q = 0; q < r; ++q) value -= row[r * stride + first + q] * y[first + q];
      y[first + r] = value * inverse[first + r];
    }
  }
  for (int64_t first = rows - kBlockRows; first >= 0; first -= kBlockRows) {
    const T* row = lower + first * stride;
    T x[4];
#pragma GCC unroll 4
    for (int r = 3; r >= 0; --r) {
      x[r] = y[first + r];
#pragma GCC unroll 4
      for (int q = 3; q > r; --q) x[r] -= row[q * stride + first + r] * x[q];
      x[r] *= inverse[first + r];
      b[first + r] = x[r];
    }
    for (int64_t i = 0; i < first; i += kLanes) {
      V rest;
      load_vector(rest, y + i);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        V l;
        load_vector(l, row + r * stride + i);
        rest -= l * x[r];
      }
      store_vector(y + i, rest);
    }
  }
}

}  // namespace fisherkernels
