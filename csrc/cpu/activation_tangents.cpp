// activation_tangents on CPU. Floor: forward reads the tangents once and writes them once; backward reads
// tangents and gradient once and writes one gradient. What is summed over the tangents stays in the
// first-level cache.
//
// Tangents that are the samples' own, [K, N, M], are those of one sample with N·M columns: rows = 1 below.
#include "math/activation_tangents.h"

#include "cpu/buffers.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

// Columns that are worked on together, and elements of a block of rows by columns: a few arrays of them fit
// in the first-level cache.
template <typename T>
constexpr int64_t kColumns = 4096 / sizeof(T);
template <typename T>
constexpr int64_t kBlock = 4 * kColumns<T>;

// Blocks of the same columns follow each other in a chunk of rows; a chunk's tile of columns is an item of
// work.
struct Blocks {
  int64_t tile, tiles;          // columns of a block, and how many times that
  int64_t rows, count, chunks;  // rows of a block, how many times that, and in how many chunks
};

Blocks blocks_of(int64_t rows, int64_t columns, int64_t most, int64_t size) {
  Blocks b;
  b.tile = std::max<int64_t>(1, std::min(columns, most));
  b.tiles = (columns + b.tile - 1) / b.tile;
  b.rows = size / b.tile;
  b.count = (rows + b.rows - 1) / b.rows;
  b.chunks = std::max<int64_t>(1, std::min(b.count / 4, 64 / std::max<int64_t>(1, b.tiles)));
  return b;
}

template <typename T>
struct ActivationTangents {
  const T* tangents;             // [K, M]
  const T* laplacian;            // [N, M] or null
  const T* slope;                // [N, M]
  const T* curvature;            // [N, M]
  Output<T> scaled;              // [K, N, M] or null, forward only
  Output<T> out_laplacian;       // [N, M], forward only
  const T* grad_scaled;          // [K, N, M] or null, backward only
  const T* grad_laplacian;       // [N, M] or null, backward only
  Output<T> to_tangents;         // [chunks, K, M] or null, backward only
  Output<T> to_laplacian;        // [N, M] or null, backward only
  Output<T> to_slope;            // [N, M] or null, backward only
  Output<T> to_curvature;        // [N, M] or null, backward only
  int64_t stack, rows, columns;  // K, N, M
  Blocks blocks;
};

// Tangents, and rows, that a thread meets together: several streams of memory at a time are read faster than
// one.
constexpr int kTangents = 4;
constexpr int kRows = 4;

// Columns of the samples' own tangents between one write and the next: a constant, for the compiler to
// unroll.
constexpr int64_t kPiece = 64;

// sum += Σ_i values[i]², i < kCount, of n columns each.
template <int kCount, typename T>
FK_INLINE void add_squares(T* sum, const T* values, int64_t stride, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    T total = sum[j];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) total += values[i * stride + j] * values[i * stride + j];
    sum[j] = total;
  }
}

// n <= kPiece columns of kTangents of the samples' own tangents.
template <typename T>
FK_INLINE void forward_piece(const ActivationTangents<T>& a, int64_t k, int64_t column, int64_t n,
                             T* squares) {
  const T *tangents = a.tangents + k * a.columns + column, *slope = a.slope + column;
  T out[kTangents][kPiece];
  for (int64_t j = 0; j < n; ++j) {
    T total = squares[j];
#pragma GCC unroll 4
    for (int i = 0; i < kTangents; ++i) {
      const T t = tangents[i * a.columns + j];
      total += t * t;
      out[i][j] = activation_tangent(slope[j], t);
    }
    squares[j] = total;
  }
  for (int i = 0; a.scaled && i < kTangents; ++i) a.scaled.write((k + i) * a.columns + column, out[i], n);
}

// Tangents k .. k + kCount in a block that starts at column `start`, of rows `top` .. `bottom`; squares may
// be null.
template <int kCount, typename T>
FK_INLINE void forward_tangents(const ActivationTangents<T>& a, int64_t k, int64_t top, int64_t bottom,
                                int64_t start, int64_t size, T* squares) {
  for (int64_t piece = 0; piece < size; piece += kTile) {
    const int64_t n = std::min(kTile, size - piece), column = start + piece;
    const T* tangents = a.tangents + k * a.columns + column;
    if (squares) add_squares<kCount>(squares + piece, tangents, a.columns, n);
    for (int64_t r = top; a.scaled && r < bottom; ++r) {
      const T* slope = a.slope + r * a.columns + column;
      T out[kCount][kTile];
      for (int64_t j = 0; j < n; ++j) {
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i)
          out[i][j] = activation_tangent(slope[j], tangents[i * a.columns + j]);
      }
      for (int i = 0; i < kCount; ++i) a.scaled.write(((k + i) * a.rows + r) * a.columns + column, out[i], n);
    }
  }
}

template <typename T>
FK_INLINE void forward_items(const ActivationTangents<T>& a, int64_t begin, int64_t end) {
  const Blocks& b = a.blocks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / b.tiles, start = item % b.tiles * b.tile,
                  n = std::min(b.tile, a.columns - start);
    const int64_t first = chunk * b.count / b.chunks, last = (chunk + 1) * b.count / b.chunks;
    T squares[kColumns<T>], out[kColumns<T>];
    std::fill_n(squares, n, T(0));
    for (int64_t block = first; block < last; ++block) {
      const int64_t top = block * b.rows, bottom = std::min(top + b.rows, a.rows);
      T* sum = block == first ? squares : nullptr;
      int64_t k = 0;
      for (; a.rows == 1 && k + kTangents <= a.stack; k += kTangents) {
        int64_t at = 0;
        for (; at + kPiece <= n; at += kPiece) forward_piece(a, k, start + at, kPiece, squares + at);
        if (at < n) forward_piece(a, k, start + at, n - at, squares + at);
      }
      for (; k + kTangents <= a.stack; k += kTangents) {
        forward_tangents<kTangents>(a, k, top, bottom, start, n, sum);
      }
      for (; k < a.stack; ++k) forward_tangents<1>(a, k, top, bottom, start, n, sum);
      for (int64_t r = top; r < bottom; ++r) {
        const int64_t at = r * a.columns + start;
        const T *slope = a.slope + at, *curvature = a.curvature + at;
        if (a.laplacian) {
          const T* laplacian = a.laplacian + at;
          for (int64_t j = 0; j < n; ++j) {
            out[j] = activation_laplacian(slope[j], laplacian[j], curvature[j], squares[j]);
          }
        } else {
          for (int64_t j = 0; j < n; ++j) out[j] = curvature[j] * squares[j];
        }
        a.out_laplacian.write(at, out, n);
      }
    }
  }
  finish_streams();
}

// What backward sums over the tangents of a block.
template <typename T>
struct Sums {
  T squares[kColumns<T>];     // [columns] Σ_k tangents²
  T by_tangent[kColumns<T>];  // [columns] Σ_n 2 curvature grad_laplacian
  T to_slope[kBlock<T>];      // [rows, columns] Σ_k grad_scaled tangents
};

// n <= kPiece columns, from `at`, of kTangents of the samples' own tangents, in a block that starts at
// `start`.
template <typename T>
FK_INLINE void backward_piece(const ActivationTangents<T>& a, int64_t k, int64_t start, int64_t at, int64_t n,
                              Sums<T>& sums) {
  const int64_t offset = k * a.columns + start + at;
  const T *tangents = a.tangents + offset, *grad = a.grad_scaled + offset, *slope = a.slope + start + at;
  const T* by_tangent = sums.by_tangent + at;
  T *squares = sums.squares + at, *to_slope = sums.to_slope + at, out[kTangents][kPiece];
  for (int64_t j = 0; j < n; ++j) {
    T total = squares[j], to = to_slope[j];
#pragma GCC unroll 4
    for (int i = 0; i < kTangents; ++i) {
      const T t = tangents[i * a.columns + j], g = grad[i * a.columns + j];
      total += t * t;
      to += g * t;
      out[i][j] = activation_tangent(slope[j], g) + by_tangent[j] * t;
    }
    squares[j] = total;
    to_slope[j] = to;
  }
  for (int i = 0; a.to_tangents && i < kTangents; ++i) {
    a.to_tangents.write(offset + i * a.columns, out[i], n);
  }
}

// What n columns of kHeight rows of slopes and of kCount gradients of tangents add to the sums over tangents,
// and to the gradients of the tangents.
template <int kCount, int kHeight, typename T>
FK_INLINE void add_rows(const ActivationTangents<T>& a, const T* tangents, const T* slope, const T* grad,
                        int64_t n, T* to_slope, int64_t size, T (&out)[kCount][kTile]) {
  for (int64_t j = 0; j < n; ++j) {
#pragma GCC unroll 4
    for (int r = 0; r < kHeight; ++r) {
      T total = to_slope[r * size + j];
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        const T g = grad[(i * a.rows + r) * a.columns + j];
        total += g * tangents[i * a.columns + j];
        out[i][j] += activation_tangent(slope[r * a.columns + j], g);
      }
      to_slope[r * size + j] = total;
    }
  }
}

// The gradients of a block; `to` is where the chunk's sum over rows goes, which the first block starts.
template <int kCount, typename T>
FK_INLINE void backward_tangents(const ActivationTangents<T>& a, int64_t k, int64_t top, int64_t bottom,
                                 int64_t start, int64_t size, int64_t to, bool first, Sums<T>& sums) {
  for (int64_t piece = 0; piece < size; piece += kTile) {
    const int64_t n = std::min(kTile, size - piece), column = start + piece;
    const T* tangents = a.tangents + k * a.columns + column;
    T out[kCount][kTile];
    if (first && a.to_curvature) add_squares<kCount>(sums.squares + piece, tangents, a.columns, n);
    for (int i = 0; i < kCount; ++i) {
      if (first || !a.to_tangents) {
        std::fill_n(out[i], n, T(0));
      } else {
        std::copy_n(a.to_tangents.data + to + i * a.columns + piece, n, out[i]);
      }
      if (a.grad_laplacian) {
        const T* by_tangent = sums.by_tangent + piece;
        for (int64_t j = 0; j < n; ++j) out[i][j] += by_tangent[j] * tangents[i * a.columns + j];
      }
    }
    if (a.grad_scaled) {
      const T* grad = a.grad_scaled + k * a.rows * a.columns + column;
      const T* slope = a.slope + column;
      T* to_slope = sums.to_slope + piece;
      int64_t r = top;
      for (; r + kRows <= bottom; r += kRows) {
        add_rows<kCount, kRows>(a, tangents, slope + r * a.columns, grad + r * a.columns, n,
                                to_slope + (r - top) * size, size, out);
      }
      for (; r < bottom; ++r) {
        add_rows<kCount, 1>(a, tangents, slope + r * a.columns, grad + r * a.columns, n,
                            to_slope + (r - top) * size, size, out);
      }
    }
    for (int i = 0; a.to_tangents && i < kCount; ++i)
      a.to_tangents.write(to + i * a.columns + piece, out[i], n);
  }
}

template <typename T>
FK_INLINE void backward_items(const ActivationTangents<T>& a, int64_t begin, int64_t end) {
  const Blocks& b = a.blocks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / b.tiles, start = item % b.tiles * b.tile,
                  n = std::min(b.tile, a.columns - start);
    const int64_t first = chunk * b.count / b.chunks, last = (chunk + 1) * b.count / b.chunks;
    Sums<T> sums;
    T out[kColumns<T>];
    std::fill_n(sums.squares, n, T(0));
    for (int64_t block = first; block < last; ++block) {
      const int64_t top = block * b.rows, bottom = std::min(top + b.rows, a.rows);
      std::fill_n(sums.to_slope, (bottom - top) * n, T(0));
      std::fill_n(sums.by_tangent, n, T(0));
      for (int64_t r = top; a.grad_laplacian && r < bottom; ++r) {
        const T *curvature = a.curvature + r * a.columns + start,
                *grad = a.grad_laplacian + r * a.columns + start;
        for (int64_t j = 0; j < n; ++j) sums.by_tangent[j] += activation_by_tangent(curvature[j], grad[j]);
      }
      const bool own = a.rows == 1 && a.grad_scaled && a.grad_laplacian;
      int64_t k = 0;
      for (; own && k + kTangents <= a.stack; k += kTangents) {
        int64_t at = 0;
        for (; at + kPiece <= n; at += kPiece) backward_piece(a, k, start, at, kPiece, sums);
        if (at < n) backward_piece(a, k, start, at, n - at, sums);
      }
      int64_t to = (chunk * a.stack + k) * a.columns + start;
      for (; k + kTangents <= a.stack; k += kTangents, to += kTangents * a.columns) {
        backward_tangents<kTangents>(a, k, top, bottom, start, n, to, block == first, sums);
      }
      for (; k < a.stack; ++k, to += a.columns) {
        backward_tangents<1>(a, k, top, bottom, start, n, to, block == first, sums);
      }
      for (int64_t r = top; r < bottom; ++r) {
        const int64_t at = r * a.columns + start;
        T* to_slope = sums.to_slope + (r - top) * n;
        if (a.grad_laplacian) {
          const T* grad = a.grad_laplacian + at;
          if (a.laplacian) {
            const T* laplacian = a.laplacian + at;
            for (int64_t j = 0; j < n; ++j) to_slope[j] += grad[j] * laplacian[j];
          }
          if (a.to_curvature) {
            for (int64_t j = 0; j < n; ++j) out[j] = grad[j] * sums.squares[j];
            a.to_curvature.write(at, out, n);
          }
          if (a.to_laplacian) {
            const T* slope = a.slope + at;
            for (int64_t j = 0; j < n; ++j) out[j] = slope[j] * grad[j];
            a.to_laplacian.write(at, out, n);
          }
        }
        if (a.to_slope) a.to_slope.write(at, to_slope, n);
      }
    }
  }
  finish_streams();
}

FK_CLONES void activation_tangents_items(const ActivationTangents<float>& a, int64_t begin, int64_t end) {
  forward_items(a, begin, end);
}
FK_CLONES void activation_tangents_items(const ActivationTangents<double>& a, int64_t begin, int64_t end) {
  forward_items(a, begin, end);
}
FK_CLONES void activation_tangents_backward_items(const ActivationTangents<float>& a, int64_t begin,
                                                  int64_t end) {
  backward_items(a, begin, end);
}
FK_CLONES void activation_tangents_backward_items(const ActivationTangents<double>& a, int64_t begin,
                                                  int64_t end) {
  backward_items(a, begin, end);
}

template <typename T>
ActivationTangents<T> arguments_of(const Tensor& tangents, const std::optional<Tensor>& laplacian,
                                   const Tensor& slope, const Tensor& curvature) {
  const bool shared = tangents.size(1) != slope.size(0);  // by the samples
  ActivationTangents<T> a{};
  a.tangents = pointer<T>(tangents);
  a.laplacian = pointer<T>(laplacian);
  a.slope = pointer<T>(slope);
  a.curvature = pointer<T>(curvature);
  a.stack = tangents.size(0);
  a.rows = shared ? slope.size(0) : 1;
  a.columns = shared ? slope.size(1) : slope.numel();
  a.blocks = blocks_of(a.rows, a.columns, kColumns<T>, kBlock<T>);
  return a;
}

// run(begin, end) over the items of work.
template <typename T, typename F>
void for_items(const ActivationTangents<T>& a, const F& run) {
  const int64_t items = a.blocks.tiles * a.blocks.chunks;
  for_rows(items, items == 0 ? 0 : (a.stack + 1) * a.rows * a.columns / items, run);
}

std::tuple<Tensor, Tensor> activation_tangents(const Tensor& tangents_in,
                                               const std::optional<Tensor>& laplacian_in,
                                               const Tensor& slope_in, const Tensor& curvature_in,
                                               bool keep_tangents) {
  const Tensor tangents = as_contiguous(tangents_in), slope = as_contiguous(slope_in),
               curvature = as_contiguous(curvature_in);
  const std::optional<Tensor> laplacian = as_contiguous(laplacian_in);
  const int64_t sizes[] = {tangents.size(0), slope.size(0), slope.size(1)};
  const Tensor scaled = new_gradient(keep_tangents, tangents, Sizes(sizes, 3));
  const Tensor out_laplacian = new_output(slope, slope.sizes());
  dispatch_full_precision(tangents, "activation_tangents", [&](auto element) {
    using T = decltype(element);
    auto a = arguments_of<T>(tangents, laplacian, slope, curvature);
    a.scaled = output<T>(scaled);
    a.out_laplacian = output<T>(out_laplacian);
    for_items(a, [&](int64_t begin, int64_t end) { activation_tangents_items(a, begin, end); });
  });
  return {scaled, out_laplacian};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> activation_tangents_backward(
    const std::optional<Tensor>& grad_scaled_in, const std::optional<Tensor>& grad_laplacian_in,
    const Tensor& tangents_in, const std::optional<Tensor>& laplacian_in, const Tensor& slope_in,
    const Tensor& curvature_in, std::vector<bool> output_mask) {
  const std::optional<Tensor> grad_scaled = as_contiguous(grad_scaled_in),
                              grad_laplacian = as_contiguous(grad_laplacian_in),
                              laplacian = as_contiguous(laplacian_in);
  const Tensor tangents = as_contiguous(tangents_in), slope = as_contiguous(slope_in),
               curvature = as_contiguous(curvature_in);
  const bool through_laplacian = grad_laplacian.has_value();
  Tensor to_tangents = new_gradient(output_mask[0], tangents, tangents.sizes());
  const Tensor to_laplacian = new_gradient(output_mask[1] && through_laplacian, slope, slope.sizes());
  const Tensor to_slope = new_gradient(output_mask[2], slope, slope.sizes());
  const Tensor to_curvature = new_gradient(output_mask[3] && through_laplacian, slope, slope.sizes());
  dispatch_full_precision(tangents, "activation_tangents_backward", [&](auto element) {
    using T = decltype(element);
    auto a = arguments_of<T>(tangents, laplacian, slope, curvature);
    const int64_t chunks = a.blocks.chunks, size = a.stack * a.columns;
    a.grad_scaled = pointer<T>(grad_scaled);
    a.grad_laplacian = pointer<T>(grad_laplacian);
    a.to_laplacian = output<T>(to_laplacian);
    a.to_slope = output<T>(to_slope);
    a.to_curvature = output<T>(to_curvature);
    std::vector<T> partial;
    if (output_mask[0]) {
      if (a.rows == 0) zero_(to_tangents);
      a.to_tangents = output<T>(to_tangents);
      a.to_tangents.stream = a.to_tangents.stream && a.blocks.count == 1;
      if (chunks > 1) {
        partial.resize(chunks * size);
        a.to_tangents = {partial.data(), false};
      }
    }
    for_items(a, [&](int64_t begin, int64_t end) { activation_tangents_backward_items(a, begin, end); });
    if (!partial.empty()) {
      const std::vector<T> total = sum_chunks(partial, chunks, size);
      std::copy(total.begin(), total.end(), output_pointer<T>(to_tangents));
    }
  });
  return {to_tangents, to_laplacian, to_slope, to_curvature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("activation_tangents", TORCH_BOX(&activation_tangents));
  m.impl("activation_tangents_backward", TORCH_BOX(&activation_tangents_backward));
}

}  // namespace fisherkernels
