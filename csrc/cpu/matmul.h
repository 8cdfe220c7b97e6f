// Products of matrices with sums in registers, for factors that lie in the caches.
#pragma once

#include <cstdint>

namespace fisherkernels {

// Rows of matrices have strides that are multiples of this many elements, and numbers up to there.
constexpr int64_t kColumnMultiple = 4;

inline int64_t padded_columns(int64_t n) {
  return (n + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple;
}

// Elements between rows as wide as n: rows that started in the same few sets of a cache would displace each
// other.
inline int64_t row_stride(int64_t n) {
  const int64_t columns = padded_columns(n);
  return columns % 64 == 0 ? columns + 16 : columns;
}

// A part of a matrix that is wanted after a product, which brings it into the caches beside its own work.
template <typename T>
struct Ahead {
  const T* data;
  int64_t stride, rows, columns;
};

// out [rows, columns] = (or +=) left [rows, inner] right [inner, columns]; columns padded. left[r][i] is at
// left + r * left_row + i * left_step. right is packed into panels (Packing), or has rows right_step apart.
template <typename T>
struct Product {
  const T* left;
  int64_t left_row, left_step;
  const T* right;
  int64_t right_step;  // 0: packed
  T* out;
  int64_t out_stride;
  int64_t rows, inner, columns;
  bool add;
  Ahead<T> ahead{};
};

void multiply(const Product<float>& product);
void multiply(const Product<double>& product);

// The panels of a matrix [inner, columns], columns padded with zeros, one after the other, each [inner,
// width].
template <typename T>
struct Packing {
  T* to;
  const T* from;
  int64_t by_row, by_column;
  int64_t inner, columns;
};

// Columns begin..end of the matrix: whole panels are packed that start there.
void pack(const Packing<float>& packing, int64_t begin, int64_t end);
void pack(const Packing<double>& packing, int64_t begin, int64_t end);

}  // namespace fisherkernels
