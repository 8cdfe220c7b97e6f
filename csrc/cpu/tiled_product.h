// Products of matrices of any size, tile by tile and in parallel, with something done to each tile while it
// is in the caches.
#pragma once

#include "cpu/matmul.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"

namespace fisherkernels {

// Element (i, j) is at data + i * by_row + j * by_column.
template <typename T>
struct Matrix {
  const T* data;
  int64_t by_row, by_column;

  // Whether products read it as it is; otherwise a tile's columns are packed first.
  bool has_padded_rows(int64_t columns) const {
    return by_column == 1 && by_row % kColumnMultiple == 0 && columns % kColumnMultiple == 0;
  }
};

constexpr int64_t kTileRows = 64, kTileColumns = 96;
constexpr int64_t kPackedRows =
    256;  // of a tile for which columns are packed: what that costs is small beside them
constexpr int64_t kTileWork = 1 << 19;  // multiply-adds that are worth a thread

// Cut into `parts` of whole panels' multiples, as equal as these allow.
inline int64_t part_begin(int64_t columns, int64_t parts, int64_t part) {
  constexpr int64_t kUnit = 24;
  const int64_t units = (columns + kUnit - 1) / kUnit;
  return std::min(columns, units * part / parts * kUnit);
}

// out [rows, columns] = (or +=) left right, then behind(row, end_row, column, end_column) for every tile of
// it. Where rows of `out` are not padded, they are written through a padded tile.
template <typename T, typename Behind>
void tiled_product(const Matrix<T>& left, const Matrix<T>& right, T* out, int64_t out_stride, int64_t rows,
                   int64_t inner, int64_t columns, bool add, const Behind& behind) {
  if (rows == 0 || columns == 0) return;
  const bool padded = right.has_padded_rows(columns), direct = out_stride % kColumnMultiple == 0;
  const int64_t height = padded ? kTileRows : kPackedRows;
  const int64_t down = (rows + height - 1) / height, least = (columns + kTileColumns - 1) / kTileColumns;
  const int64_t across =
      padded || least == 1 ? least : (least + 1) / 2 * 2;  // even: two threads have equal shares
  const int64_t grain =
      std::max<int64_t>(1, kTileWork / (std::min(rows, height) * kTileColumns * std::max<int64_t>(1, inner)));
  torch::stable::parallel_for(0, down * across, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> memory((padded ? 0 : inner * kTileColumns) + (direct ? 0 : height * kTileColumns));
    T *panels = memory.data(), *tile = panels + (padded ? 0 : inner * kTileColumns);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / across * height, part = task % across;
      const int64_t column = part_begin(columns, across, part),
                    end_column = part_begin(columns, across, part + 1);
      const int64_t n = std::min(height, rows - row), wide = end_column - column;
      T* to = out + row * out_stride + column;
      if (!padded) {
        pack(Packing<T>{panels, right.data + column * right.by_column, right.by_row, right.by_column, inner,
                        wide},
             0, wide);
      }
      multiply(Product<T>{left.data + row * left.by_row, left.by_row, left.by_column,
                          padded ? right.data + column : panels, padded ? right.by_row : 0,
                          direct ? to : tile, direct ? out_stride : kTileColumns, n, inner,
                          padded_columns(wide), add && direct});
      for (int64_t i = 0; !direct && i < n; ++i) {
        T* there = to + i * out_stride;
        for (int64_t j = 0; j < wide; ++j) there[j] = tile[i * kTileColumns + j] + (add ? there[j] : T(0));
      }
      behind(row, row + n, column, end_column);
    }
  });
}

}  // namespace fisherkernels
