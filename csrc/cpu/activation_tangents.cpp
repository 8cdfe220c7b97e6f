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

// A block: some rows by some columns, small enough for the first-level cache in a few arrays.
template <typename T>
constexpr int64_t kBlock = 8192 / sizeof(T);

// Blocks of the same columns follow each other in a chunk of rows; a chunk's tile of columns is an item of
// work.
struct Partition {
  int64_t tile, tiles, block_rows, blocks, chunks;
};

Partition partition(int64_t rows, int64_t columns, int64_t block) {
  Partition p;
  p.tile = std::max<int64_t>(1, std::min(columns, rows > 1 ? kTile : block));
  p.tiles = (columns + p.tile - 1) / p.tile;
  p.block_rows = block / p.tile;
  p.blocks = (rows + p.block_rows - 1) / p.block_rows;
  p.chunks = std::max<int64_t>(1, std::min(p.blocks / 4, 64 / std::max<int64_t>(1, p.tiles)));
  return p;
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
  Partition blocks;
};

template <typename T>
FK_INLINE void add_squares(T* sum, const T* values, int64_t n) {
  for (int64_t j = 0; j < n; ++j) sum[j] += values[j] * values[j];
}

template <typename T>
FK_INLINE void forward_items(const ActivationTangents<T>& a, int64_t begin, int64_t end) {
  const Partition& p = a.blocks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / p.tiles, start = item % p.tiles * p.tile,
                  n = std::min(p.tile, a.columns - start);
    const int64_t first = chunk * p.blocks / p.chunks, last = (chunk + 1) * p.blocks / p.chunks;
    T squares[kBlock<T>], out[kBlock<T>];
    std::fill_n(squares, n, T(0));
    for (int64_t block = first; block < last; ++block) {
      const int64_t top = block * p.block_rows, bottom = std::min(top + p.block_rows, a.rows);
      for (int64_t k = 0; k < a.stack; ++k) {
        const T* tangents = a.tangents + k * a.columns + start;
        if (block == first) add_squares(squares, tangents, n);
        if (!a.scaled) continue;
        for (int64_t r = top; r < bottom; ++r) {
          const T* slope = a.slope + r * a.columns + start;
          for (int64_t j = 0; j < n; ++j) out[j] = activation_tangent(slope[j], tangents[j]);
          a.scaled.write((k * a.rows + r) * a.columns + start, out, n);
        }
      }
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

template <typename T>
FK_INLINE void backward_items(const ActivationTangents<T>& a, int64_t begin, int64_t end) {
  const Partition& p = a.blocks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / p.tiles, start = item % p.tiles * p.tile,
                  n = std::min(p.tile, a.columns - start);
    const int64_t first = chunk * p.blocks / p.chunks, last = (chunk + 1) * p.blocks / p.chunks;
    T squares[kBlock<T>], by_tangent[kBlock<T>], to_slope[kBlock<T>], out[kBlock<T>];
    std::fill_n(squares, n, T(0));
    for (int64_t block = first; block < last; ++block) {
      const int64_t top = block * p.block_rows, bottom = std::min(top + p.block_rows, a.rows);
      std::fill_n(to_slope, (bottom - top) * n, T(0));
      std::fill_n(by_tangent, n, T(0));
      for (int64_t r = top; a.grad_laplacian && r < bottom; ++r) {
        const T *curvature = a.curvature + r * a.columns + start,
                *grad = a.grad_laplacian + r * a.columns + start;
        for (int64_t j = 0; j < n; ++j) by_tangent[j] += activation_by_tangent(curvature[j], grad[j]);
      }
      for (int64_t k = 0; k < a.stack; ++k) {
        const T* tangents = a.tangents + k * a.columns + start;
        const int64_t to = (chunk * a.stack + k) * a.columns + start;
        if (block == first && a.to_curvature) add_squares(squares, tangents, n);
        if (block == first) {
          std::fill_n(out, n, T(0));
        } else if (a.to_tangents) {
          std::copy_n(a.to_tangents.data + to, n, out);
        }
        if (a.grad_laplacian) {
          for (int64_t j = 0; j < n; ++j) out[j] += by_tangent[j] * tangents[j];
        }
        for (int64_t r = top; a.grad_scaled && r < bottom; ++r) {
          const T* grad = a.grad_scaled + (k * a.rows + r) * a.columns + start;
          const T* slope = a.slope + r * a.columns + start;
          T* sum = to_slope + (r - top) * n;
          for (int64_t j = 0; j < n; ++j) {
            sum[j] += grad[j] * tangents[j];
            out[j] += activation_tangent(slope[j], grad[j]);
          }
        }
        if (a.to_tangents) a.to_tangents.write(to, out, n);
      }
      for (int64_t r = top; r < bottom; ++r) {
        const int64_t at = r * a.columns + start;
        T* sum = to_slope + (r - top) * n;
        if (a.grad_laplacian) {
          const T* grad = a.grad_laplacian + at;
          if (a.laplacian) {
            const T* laplacian = a.laplacian + at;
            for (int64_t j = 0; j < n; ++j) sum[j] += grad[j] * laplacian[j];
          }
          if (a.to_curvature) {
            for (int64_t j = 0; j < n; ++j) out[j] = grad[j] * squares[j];
            a.to_curvature.write(at, out, n);
          }
          if (a.to_laplacian) {
            const T* slope = a.slope + at;
            for (int64_t j = 0; j < n; ++j) out[j] = slope[j] * grad[j];
            a.to_laplacian.write(at, out, n);
          }
        }
        if (a.to_slope) a.to_slope.write(at, sum, n);
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
  a.blocks = partition(a.rows, a.columns, kBlock<T>);
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
      a.to_tangents.stream = a.to_tangents.stream && a.blocks.blocks == 1;
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
