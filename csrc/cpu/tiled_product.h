// Products of matrices of any size in tiles, with something done to each tile while it is in the caches.
#pragma once

#include "cpu/matmul.h"
#include "cpu/phases.h"
#include "cpu/scratch.h"

namespace fisherkernels {

// Element (i, j) is at data + i * by_row + j * by_column.
template <typename T>
struct Matrix {
  const T* data;
  int64_t by_row, by_column;

  // Whether products read it as it is, with rows apart as row_stride has them; otherwise a tile's columns are
  // packed first.
  bool has_padded_rows(int64_t columns) const {
    return by_column == 1 && by_row == row_stride(by_row) && columns % kColumnMultiple == 0;
  }
};

// left [rows, inner] right [inner, columns].
template <typename T>
struct Factors {
  Matrix<T> left, right;
  int64_t rows, inner, columns;
};

// The tiles of out = (or +=) left right; behind(row, end_row, column, end_column) for each. Where rows of
// `out` are not padded, they are written through a padded tile.
template <typename T, typename Behind>
class TiledProduct {
 public:
  TiledProduct(const Factors<T>& factors, T* out, int64_t out_stride, bool add, Behind behind)
      : f_(factors),
        out_(out),
        stride_(out_stride),
        add_(add),
        padded_(f_.right.has_padded_rows(f_.columns)),
        direct_(out_stride % kColumnMultiple == 0),
        height_(padded_ ? kRows : kPackedRows),
        width_(padded_ ? kColumns : kPackedColumns),
        inner_(padded_ ? kInner : kPackedInner),
        behind_(std::move(behind)) {
    if (f_.rows == 0 || f_.columns == 0) return;
    const int64_t least = (f_.columns + width_ - 1) / width_;
    across_ = least == 1 ? 1 : (least + 1) / 2 * 2;  // even: two threads have equal shares
    while (height_ > kLeastRows && down() * across_ < Phases::threads()) height_ /= 2;
  }

  int64_t count() const { return down() * across_; }
  int64_t work() const { return f_.rows * f_.inner * f_.columns; }

  void operator()(int64_t tile) const {
    const int64_t part = tile % across_, row = tile / across_ * height_,
                  end_row = std::min(row + height_, f_.rows);
    const int64_t column = begin(part), end_column = begin(part + 1), columns = end_column - column;
    const int64_t packed = padded_ ? 0 : std::min(f_.inner, inner_) * width_;
    const Scratch<T> memory(packed + (direct_ ? 0 : height_ * width_));
    T *const panels = memory.data(), *const through = panels + packed;
    T* const to = out_ + row * stride_ + column;
    const Matrix<T>&left = f_.left, &right = f_.right;
    Product<T> product{left.data + row * left.by_row,
                       left.by_row,
                       left.by_column,
                       padded_ ? right.data + column : panels,
                       padded_ ? right.by_row : 0,
                       direct_ ? to : through,
                       direct_ ? stride_ : width_,
                       end_row - row,
                       std::min(f_.inner, inner_),
                       padded_columns(columns),
                       add_ && direct_};
    for (int64_t i = 0; i == 0 || i < f_.inner; i += inner_) {
      product.inner = std::min(inner_, f_.inner - i);
      if (!padded_) {
        const T* from = right.data + column * right.by_column + i * right.by_row;
        pack(Packing<T>{panels, from, right.by_row, right.by_column, product.inner, columns}, 0,
             product.columns);
        product.ahead = packed_after(part, i + inner_);
      }
      multiply(product);
      product.left += inner_ * product.left_step;
      product.right += inner_ * product.right_step;
      product.add = true;
    }
    for (int64_t i = 0; !direct_ && i < end_row - row; ++i) {
      T* const there = to + i * stride_;
      for (int64_t j = 0; j < columns; ++j) there[j] = through[i * width_ + j] + (add_ ? there[j] : T(0));
    }
    behind_(row, end_row, column, end_column);
  }

 private:
  // Rows, columns and inner part of a tile stay in the second-level cache, packed ones with those that are
  // fetched for the next tile. What packing costs is small beside so many rows.
  static constexpr int64_t kRows = 128, kColumns = 96, kPackedRows = 256, kPackedColumns = 48,
                           kLeastRows = 32, kInner = 512, kPackedInner = 1024;

  int64_t down() const { return (f_.rows + height_ - 1) / height_; }

  // Of the columns of a part: whole panels' multiples, as equal as these allow.
  int64_t begin(int64_t part) const {
    constexpr int64_t kUnit = 24;
    const int64_t units = (f_.columns + kUnit - 1) / kUnit;
    return std::min(f_.columns, units * part / across_ * kUnit);
  }

  // What is packed next: rows from `i` of the same columns, or columns that this thread is likely to take.
  Ahead<T> packed_after(int64_t part, int64_t i) const {
    if (i >= f_.inner) {
      part += Phases::threads();
      i = 0;
    }
    if (part >= across_) return {};
    const auto& [data, by_row, by_column] = f_.right;
    const T* from = data + begin(part) * by_column + i * by_row;
    const int64_t columns = begin(part + 1) - begin(part), rows = std::min(inner_, f_.inner - i);
    if (by_row == 1) return {from, by_column, columns, rows};
    return {from, by_row, rows, columns};
  }

  Factors<T> f_;
  T* out_;
  int64_t stride_;
  bool add_, padded_, direct_;
  int64_t height_, width_, inner_, across_ = 0;
  Behind behind_;
};

template <typename T, typename Behind>
void add_product(Phases& phases, const Factors<T>& factors, T* out, int64_t out_stride, bool add,
                 Behind behind) {
  TiledProduct<T, Behind> product(factors, out, out_stride, add, std::move(behind));
  const int64_t count = product.count(), work = product.work();
  phases.add(count, work, std::move(product));
}

}  // namespace fisherkernels
