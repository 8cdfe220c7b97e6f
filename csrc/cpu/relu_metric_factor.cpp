// relu_metric_factor on CPU. Floor for N samples, d tangents and n_l active units in layer l: 2 N d Σ n_l
// n_(l+1) FLOPs, then 2 N d n_L² + N d² n_L for the last layer and the Gram matrix. Units that are off cost
// nothing.
//
// One task is one sample. Its tangents lie in two buffers, [units, d], active units only and d innermost, so
// that a row of a weight matrix meets them in broadcast scalars: four rows times three vectors of sums stay
// in registers, and the weights are read where they lie, at the places of the active units.
#include "cpu/buffers.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"
#include "cpu/triangular.h"

namespace fisherkernels {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kMostVectors = 3;

// out[r][k] = Σ_i rows[r][offsets[i]] tangents[i][k] for r < kRows, i < count, and a range of columns k.
template <typename T>
struct Picked {
  T* out;
  int64_t out_stride;
  const T* rows[kRows];
  const int32_t* offsets;
  int64_t count;
  const T* tangents;
  int64_t stride;
};

template <typename T, int kBytes, int kVectors>
FK_INLINE void multiply_picked(const Picked<T>& p, int64_t at) {
  using V = Vector<T, kBytes>;
  constexpr int64_t kLanes = kBytes / sizeof(T);
  V sum[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int m = 0; m < kVectors; ++m) sum[r][m] = V{};
  }
  const T *row0 = p.rows[0], *row1 = p.rows[1], *row2 = p.rows[2], *row3 = p.rows[3];
  const T* from = p.tangents + at;
  for (int64_t i = 0; i < p.count; ++i, from += p.stride) {
    const int64_t offset = p.offsets[i];
    const T scalar[kRows] = {row0[offset], row1[offset], row2[offset], row3[offset]};
    V t[kVectors];
#pragma GCC unroll 3
    for (int m = 0; m < kVectors; ++m) load_vector(t[m], from + m * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int m = 0; m < kVectors; ++m) sum[r][m] += scalar[r] * t[m];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int m = 0; m < kVectors; ++m) store_vector(p.out + r * p.out_stride + at + m * kLanes, sum[r][m]);
  }
}

// Columns begin..end-1, at most kMostVectors vectors of them.
template <int kBytes, typename T>
FK_INLINE void multiply_columns_of(const Picked<T>& p, int64_t begin, int64_t end) {
  const int64_t vectors = (end - begin) * static_cast<int64_t>(sizeof(T)) / kBytes;
  if (vectors == 3) {
    multiply_picked<T, kBytes, 3>(p, begin);
  } else if (vectors == 2) {
    multiply_picked<T, kBytes, 2>(p, begin);
  } else {
    multiply_picked<T, kBytes, 1>(p, begin);
  }
}

FK_WIDTHS(multiply_columns, Picked<float>)
FK_WIDTHS(multiply_columns, Picked<double>)

template <typename T>
struct ReluMetricFactor {
  const T* first;                // [h_1, d]
  std::vector<const T*> layers;  // [h_2, h_1], ..., [h_L, h_(L-1)], and the Gram matrix [h_L, h_L]
  std::vector<const T*> values;  // [N, h_1], ..., [N, h_L]
  std::vector<int64_t> units;    // h_1, ..., h_L
  T* factor;                     // [N, d, d]
  int64_t samples, size, widest;

  // Elements of a buffer's row: d and zeros, whole vectors and whole blocks of rows of the Gram matrix.
  template <int kBytes>
  FK_INLINE int64_t stride() const {
    constexpr int64_t kMultiple = std::max<int64_t>(kBytes / sizeof(T), kBlockRows);
    return (size + kMultiple - 1) / kMultiple * kMultiple;
  }
};

// Rows rows[0], ..., rows[count - 1] of `matrix`, `leading` elements long, times the tangents.
template <typename T, int kBytes>
FK_INLINE void multiply_layer(T* out, const T* matrix, int64_t leading, const std::vector<int32_t>& rows,
                              const std::vector<int32_t>& offsets, const T* tangents, int64_t stride) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  const int64_t vectors = stride / kLanes, blocks = (vectors + kMostVectors - 1) / kMostVectors;
  const int64_t count = rows.size();
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * vectors / blocks * kLanes, end = (block + 1) * vectors / blocks * kLanes;
    for (int64_t r = 0; r < count; r += kRows) {
      Picked<T> p{out + r * stride, stride, {}, offsets.data(), static_cast<int64_t>(offsets.size()),
                  tangents,         stride};
      for (int64_t q = 0; q < kRows; ++q) p.rows[q] = matrix + rows[std::min(r + q, count - 1)] * leading;
      multiply_columns(p, begin, end);
    }
  }
}

// The upper triangle of tangentsᵀ products, [rounded(d), sums_stride], whole vectors.
template <typename T, int kBytes>
FK_INLINE void multiply_pairs(T* sums, int64_t sums_stride, const T* tangents, const T* products,
                              std::vector<int32_t>& offsets, int64_t count, int64_t size, int64_t stride) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  offsets.resize(count);
  for (int64_t i = 0; i < count; ++i) offsets[i] = static_cast<int32_t>(i * stride);
  for (int64_t k = 0; k < size; k += kRows) {
    Picked<T> p{sums + k * sums_stride, sums_stride, {}, offsets.data(), count, products, stride};
    for (int64_t q = 0; q < kRows; ++q) p.rows[q] = tangents + k + q;
    for (int64_t begin = k / kLanes * kLanes; begin < stride; begin += kMostVectors * kLanes) {
      multiply_columns(p, begin, std::min(begin + kMostVectors * kLanes, stride));
    }
  }
}

// The rows of active units: those whose value is above zero, or NaN.
template <typename T>
FK_INLINE void find_active(std::vector<int32_t>& active, const T* values, int64_t count) {
  active.resize(count);
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    active[found] = static_cast<int32_t>(i);
    found += values[i] > T(0) || values[i] != values[i];
  }
  active.resize(found);
}

template <int kBytes, typename T>
FK_INLINE void relu_metric_factor_samples_of(const ReluMetricFactor<T>& a, int64_t begin, int64_t end) {
  const int64_t stride = a.template stride<kBytes>(), rows = rounded(a.size), width = padded<T>(a.size);
  const int64_t buffer = (a.widest + kRows) * stride;
  const Scratch<T> memory(2 * buffer + (2 * rows + 1) * width);
  T* tangents = memory.data();
  T* products = tangents + buffer;
  T* sums = products + buffer;
  T* lower = sums + rows * width;
  T* inverse = lower + rows * width;
  std::vector<int32_t> active, next;
  for (int64_t n = begin; n < end; ++n) {
    find_active(active, a.values[0] + n * a.units[0], a.units[0]);
    for (size_t i = 0; i < active.size(); ++i) {
      T* to = tangents + i * stride;
      memcpy(to, a.first + active[i] * a.size, a.size * sizeof(T));
      std::fill_n(to + a.size, stride - a.size, T(0));
    }
    for (size_t layer = 1; layer < a.units.size(); ++layer) {
      find_active(next, a.values[layer] + n * a.units[layer], a.units[layer]);
      multiply_layer<T, kBytes>(products, a.layers[layer - 1], a.units[layer - 1], next, active, tangents,
                                stride);
      std::swap(tangents, products);
      std::swap(active, next);
    }
    multiply_layer<T, kBytes>(products, a.layers.back(), a.units.back(), active, active, tangents, stride);
    std::fill_n(sums, rows * width, T(0));
    multiply_pairs<T, kBytes>(sums, width, tangents, products, next, active.size(), a.size, stride);
    for (int64_t k = 0; k < rows; ++k) {
      T* diagonal = sums + k * width + k;
      *diagonal = k < a.size ? metric_diagonal(*diagonal) : T(1);
    }
    const bool usable = factor_upper<T, kBytes>(sums, width, a.size, inverse);
    T* factor = a.factor + n * a.size * a.size;
    if (!usable) {
      std::fill_n(factor, a.size * a.size, kNan<T>);
      continue;
    }
    transpose_upper(lower, sums, width, a.size);
    for (int64_t k = 0; k < a.size; ++k) memcpy(factor + k * a.size, lower + k * width, a.size * sizeof(T));
  }
}

FK_WIDTHS(relu_metric_factor_samples, ReluMetricFactor<float>)
FK_WIDTHS(relu_metric_factor_samples, ReluMetricFactor<double>)

std::vector<Tensor> all_contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(as_contiguous(t));
  return result;
}

Tensor relu_metric_factor(const Tensor& first_in, std::vector<Tensor> weights_in,
                          std::vector<Tensor> values_in, const Tensor& gram_in) {
  const Tensor first = as_contiguous(first_in), gram = as_contiguous(gram_in);
  const std::vector<Tensor> weights = all_contiguous(weights_in), values = all_contiguous(values_in);
  const int64_t samples = values[0].size(0), size = first.size(1);
  const Tensor factor = new_output(first, {samples, size, size});
  if (factor.numel() == 0) return factor;
  dispatch_full_precision(first, "relu_metric_factor", [&](auto element) {
    using T = decltype(element);
    ReluMetricFactor<T> a{pointer<T>(first), {}, {}, {}, output_pointer<T>(factor), samples, size, 0};
    int64_t work = (size + 1) * (size + 1) * (size + 1) / 3;
    for (const Tensor& weight : weights) {
      a.layers.push_back(pointer<T>(weight));
      work += weight.numel() * size / 8;
    }
    a.layers.push_back(pointer<T>(gram));
    for (const Tensor& value : values) {
      a.values.push_back(pointer<T>(value));
      a.units.push_back(value.size(1));
      a.widest = std::max(a.widest, value.size(1));
    }
    for_rows(samples, work / 8 + 1,
             [&](int64_t begin, int64_t end) { relu_metric_factor_samples(a, begin, end); });
  });
  return factor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("relu_metric_factor", TORCH_BOX(&relu_metric_factor));
}

}  // namespace fisherkernels
