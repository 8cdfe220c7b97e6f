// See matmul.h.
#include "cpu/matmul.h"

#include "cpu/lanes.h"

namespace fisherkernels {
namespace {

// A panel is as many columns as a block of sums has; the last ones are narrower. With 32 vector registers 8 x
// 3 sums leave room for the factors, with 16 it is 4 x 3; no fewer than 8 sums keep two units for products
// busy.
constexpr int64_t kPanelVectors = 3;
template <int kBytes, int kVectors>
constexpr int kBlockHeight = kBytes == 64 || kVectors == 1 ? 8 : 4;

// Rows of a panel that are worked on together, to stay in the first-level cache: of one packed, and of one
// whose rows are parts of several cache lines each.
constexpr int64_t kInnerPacked = 256, kInnerApart = 128;

// Sums of fewer products are done before memory answers.
constexpr int64_t kLeastInner = 64;

// Of the next panel, `left` columns before the end.
template <typename T, int kBytes>
FK_INLINE int64_t panel_width(int64_t left) {
  int64_t width = kBytes / sizeof(T);
  while (width > left) width /= 2;
  return std::min(left / width, kPanelVectors) * width;
}

// Rows begin..end of `right`, a panel.
template <typename T>
struct Panel {
  const T* right;
  int64_t step, begin, end;
};

template <typename T, int kBytes, int kVectors, int kRows>
FK_INLINE void multiply_block(const Product<T>& p, const Panel<T>& panel, int64_t row, int64_t column) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kLanes = kBytes / sizeof(T);
  const int64_t left_row = p.left_row, left_step = p.left_step, step = panel.step;
  const T *left = p.left + row * left_row + panel.begin * left_step,
          *right = panel.right + panel.begin * step;
  T* out = p.out + row * p.out_stride + column;
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int m = 0; m < kVectors; ++m) {
      sum[r][m] = V{};
      if (p.add || panel.begin > 0) load_vector(sum[r][m], out + r * p.out_stride + m * kLanes);
    }
  }
  for (int64_t i = panel.begin; i < panel.end; ++i, left += left_step, right += step) {
    V factor[kVectors];
#pragma GCC unroll 3
    for (int m = 0; m < kVectors; ++m) load_vector(factor[m], right + m * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T scalar = left[r * left_row];
#pragma GCC unroll 3
      for (int m = 0; m < kVectors; ++m) sum[r][m] += scalar * factor[m];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int m = 0; m < kVectors; ++m) store_vector(out + r * p.out_stride + m * kLanes, sum[r][m]);
  }
}

// Hints for a row of the processor's lines that starts anywhere.
template <bool kToWrite, typename T>
FK_INLINE void prefetch(const T* row, int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < columns; j += kLine) __builtin_prefetch(row + j, kToWrite);
  __builtin_prefetch(row + columns - 1, kToWrite);
}

// What is wanted ahead, a share with every block of sums.
template <typename T>
struct Prefetching {
  Ahead<T> left;
  int64_t share, line = 0;

  Prefetching(const Ahead<T>& ahead, int64_t blocks)
      : left(ahead), share((ahead.rows * lines() + blocks - 1) / std::max<int64_t>(blocks, 1)) {}

  int64_t lines() const { return left.columns * int64_t(sizeof(T)) / 64 + 2; }

  FK_INLINE void next() {
    for (int64_t i = 0; i < share && left.rows > 0; ++i) {
      __builtin_prefetch(left.data + std::min(line * int64_t(64 / sizeof(T)), left.columns - 1));
      if (++line < lines()) continue;
      line = 0;
      left.data += left.stride;
      --left.rows;
    }
  }
};

// What comes after rows up to `end` of a panel that is not packed, in it or in the next one.
template <typename T>
FK_INLINE Ahead<T> next_part(const Product<T>& p, const T* right, int64_t end, int64_t column,
                             int64_t columns) {
  if (end < p.inner)
    return {right + end * p.right_step, p.right_step, std::min(kInnerApart, p.inner - end), columns};
  const int64_t left = p.columns - column - columns;
  return {right + columns, p.right_step, left > 0 ? std::min(kInnerApart, p.inner) : 0,
          std::min(columns, left)};
}

template <typename T, int kBytes, int kVectors, int kMost>
FK_INLINE void multiply_panel(const Product<T>& p, const T* right, int64_t step, int64_t column,
                              Prefetching<T>& ahead) {
  constexpr int64_t kColumns = kVectors * kBytes / sizeof(T);
  const bool packed = p.right_step == 0;
  const int64_t length = packed ? kInnerPacked : kInnerApart;
  int64_t begin = 0;
  do {
    const Panel<T> panel{right, step, begin, std::min(begin + length, p.inner)};
    Prefetching<T> part(packed ? Ahead<T>{} : next_part(p, right, panel.end, column, kColumns),
                        p.rows / kMost);
    int64_t r = 0;
    for (; r + kMost <= p.rows; r += kMost) {
      ahead.next();
      part.next();
      if (begin == 0 && p.inner >= kLeastInner && r + 2 * kMost <= p.rows) {
        const T* out = p.out + (r + kMost) * p.out_stride + column;
        for (int i = 0; i < kMost; ++i) prefetch<true>(out + i * p.out_stride, kColumns);
      }
      multiply_block<T, kBytes, kVectors, kMost>(p, panel, r, column);
    }
    if constexpr (kMost == 8) {
      for (; r + 4 <= p.rows; r += 4) multiply_block<T, kBytes, kVectors, 4>(p, panel, r, column);
    }
    for (; r < p.rows; ++r) multiply_block<T, kBytes, kVectors, 1>(p, panel, r, column);
    begin = panel.end;
  } while (begin < p.inner);
}

template <int kBytes, typename T>
FK_INLINE void multiply_of(const Product<T>& p, int64_t, int64_t) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  constexpr int kRows = kBlockHeight<kBytes, 3>, kRowsOfOne = kBlockHeight<kBytes, 1>;
  const int64_t parts =
      (p.inner + kInnerPacked - 1) / kInnerPacked * ((p.columns + 3 * kLanes - 1) / (3 * kLanes));
  Prefetching<T> ahead(p.ahead, p.rows / kRows * parts);
  for (int64_t column = 0, width; column < p.columns; column += width) {
    width = panel_width<T, kBytes>(p.columns - column);
    const T* right = p.right + (p.right_step == 0 ? column * p.inner : column);
    const int64_t step = p.right_step == 0 ? width : p.right_step;
    if (width == 3 * kLanes) {
      multiply_panel<T, kBytes, 3, kRows>(p, right, step, column, ahead);
    } else if (width == 2 * kLanes) {
      multiply_panel<T, kBytes, 2, kRows>(p, right, step, column, ahead);
    } else if (width == kLanes) {
      multiply_panel<T, kBytes, 1, kRowsOfOne>(p, right, step, column, ahead);
    } else if constexpr (kLanes == 16) {
      if (width == 8) {
        multiply_panel<T, 8 * sizeof(T), 1, kRowsOfOne>(p, right, step, column, ahead);
      } else {
        multiply_panel<T, 4 * sizeof(T), 1, kRowsOfOne>(p, right, step, column, ahead);
      }
    } else if constexpr (kLanes == 8) {
      multiply_panel<T, 4 * sizeof(T), 1, kRowsOfOne>(p, right, step, column, ahead);
    }
  }
}

// 4 x 4 elements; rows are to_stride and from_stride apart.
template <typename T>
FK_INLINE void transpose_square(T* to, int64_t to_stride, const T* from, int64_t from_stride) {
  using V = Vector<T, 4 * sizeof(T)>;
  V a, b, c, d;
  load_vector(a, from);
  load_vector(b, from + from_stride);
  load_vector(c, from + 2 * from_stride);
  load_vector(d, from + 3 * from_stride);
  const V ac = __builtin_shufflevector(a, c, 0, 4, 1, 5), bd = __builtin_shufflevector(b, d, 0, 4, 1, 5);
  const V ca = __builtin_shufflevector(a, c, 2, 6, 3, 7), db = __builtin_shufflevector(b, d, 2, 6, 3, 7);
  store_vector(to, __builtin_shufflevector(ac, bd, 0, 4, 1, 5));
  store_vector(to + to_stride, __builtin_shufflevector(ac, bd, 2, 6, 3, 7));
  store_vector(to + 2 * to_stride, __builtin_shufflevector(ca, db, 0, 4, 1, 5));
  store_vector(to + 3 * to_stride, __builtin_shufflevector(ca, db, 2, 6, 3, 7));
}

template <int kBytes, typename T>
FK_INLINE void pack_of(const Packing<T>& p, int64_t begin, int64_t end) {
  const int64_t columns = padded_columns(p.columns);
  for (int64_t column = 0, width; column < columns; column += width) {
    width = panel_width<T, kBytes>(columns - column);
    if (column < begin || column >= end) continue;
    T* to = p.to + column * p.inner;
    const int64_t there = std::min(width, p.columns - column);
    int64_t first = 0;
    if (p.by_row == 1 && there == width && width % 4 == 0) {  // a transpose, in squares of 4
      for (; first + 4 <= p.inner; first += 4) {
        for (int64_t j = 0; j < width; j += 4) {
          transpose_square(to + first * width + j, width, p.from + first + (column + j) * p.by_column,
                           p.by_column);
        }
      }
    }
    if (p.by_column == 1 && there == width && width % 4 == 0) {
      using V = Vector<T, 4 * sizeof(T)>;
      for (; first < p.inner; ++first) {
        for (int64_t j = 0; j < width; j += 4) {
          V row;
          load_vector(row, p.from + first * p.by_row + column + j);
          store_vector(to + first * width + j, row);
        }
      }
    }
    for (int64_t i = first; i < p.inner; ++i) {
      const T* from = p.from + i * p.by_row + column * p.by_column;
      for (int64_t j = 0; j < there; ++j) to[i * width + j] = from[j * p.by_column];
      for (int64_t j = there; j < width; ++j) to[i * width + j] = 0;
    }
  }
}

namespace clones {
FK_WIDTHS(multiply, Product<float>)
FK_WIDTHS(multiply, Product<double>)
FK_WIDTHS(pack, Packing<float>)
FK_WIDTHS(pack, Packing<double>)
}  // namespace clones

}  // namespace

void multiply(const Product<float>& product) { clones::multiply(product, 0, 1); }
void multiply(const Product<double>& product) { clones::multiply(product, 0, 1); }
void pack(const Packing<float>& packing, int64_t begin, int64_t end) { clones::pack(packing, begin, end); }
void pack(const Packing<double>& packing, int64_t begin, int64_t end) { clones::pack(packing, begin, end); }

}  // namespace fisherkernels
