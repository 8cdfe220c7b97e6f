// metric_solve on CPU. Floor for N samples, d tangents, D columns: J is read once, 4 N d D bytes in float32,
// and N D d (d + 1) FLOPs; from d = 20 or so the arithmetic costs more than the reading.
//
// One task is one sample: tiles of J's columns are copied into a panel that stays in the second-level cache
// while all pairs of its rows are multiplied. Few samples of many columns are cut into chunks of columns,
// whose sums are then added in order: the number of chunks depends on the shape alone, so that results do not
// depend on the threads.
#include "cpu/buffers.h"
#include "cpu/gram.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"
#include "cpu/triangular.h"

namespace fisherkernels {
namespace {

constexpr int64_t kPanelBytes = int64_t{512} << 10;
constexpr int64_t kTileColumns = 1024;   // at most, so that float32 sums stay short
constexpr int64_t kFewestColumns = 256;  // of a chunk, or of a tile where d is large
constexpr int64_t kTasks = 16;           // that chunks make of few samples

template <typename T>
struct MetricSolve {
  const T* jacobian;  // [d, N, D] with the strides below
  int64_t by_tangent, by_sample, by_column;
  const T* precision;  // [1 or N, 1 or D]
  int64_t precision_by_sample;
  bool per_column;
  const T* rhs;   // [S, N, d]
  const T* data;  // [S, N, D] or null
  T* parts;       // [N, chunks, sums] or null where the sums stay in the scratch memory
  T* solution;    // [S, N, d]
  T* factor;      // [N, d, d]
  int64_t size, samples, columns, systems, chunks;  // d, N, D, S
  int64_t tile, tile_stride, stride;  // columns of a tile, elements of a panel's row and of a sum's row
  int64_t blocks;                     // of products in a tile's Gram matrix

  MetricSolve(int64_t size, int64_t samples, int64_t columns, int64_t systems)
      : size(size), samples(samples), columns(columns), systems(systems) {
    constexpr int64_t kElements = kWidest / sizeof(T);
    const int64_t fit = kPanelBytes / static_cast<int64_t>(sizeof(T)) / std::max<int64_t>(1, size);
    const int64_t wanted = (samples == 0 || samples >= kTasks) ? 1 : kTasks / samples;
    chunks = std::max<int64_t>(1, std::min(wanted, columns / kFewestColumns));
    const int64_t longest = (columns + chunks - 1) / chunks;
    const int64_t most = std::clamp(fit, kFewestColumns, kTileColumns);
    const int64_t tiles = std::max<int64_t>(1, (longest + most - 1) / most);
    tile = ((longest + tiles - 1) / tiles + kElements - 1) / kElements * kElements;
    tile_stride =
        (tile / kElements | 1) * kElements;  // an odd number of cache lines: rows do not evict each other
    stride = padded<T>(size);
    blocks = 1;
    for (int64_t k = 0; k < size; k += kLeftRows)
      blocks += (rounded(size) - k / kRightRows * kRightRows) / kRightRows;
  }

  // Columns begin.. of chunk `item`, chunks of a sample follow each other.
  FK_INLINE int64_t begin_of(int64_t item) const { return item % chunks * columns / chunks; }
  FK_INLINE int64_t end_of(int64_t item) const { return (item % chunks + 1) * columns / chunks; }

  // What to ask for while a tile of chunk `item` that ends at column `end` is computed with: the next tile of
  // this chunk, or the first of the next chunk, if that comes before chunk `last`.
  FK_INLINE Ahead ahead(int64_t item, int64_t end, int64_t last) const {
    if (end == end_of(item)) end = begin_of(++item);
    const int64_t bytes = std::min(tile, end_of(item) - end) * static_cast<int64_t>(sizeof(T));
    const T* first = jacobian + item / chunks * by_sample + end;
    const bool wanted = by_column == 1 && item < last;
    return {reinterpret_cast<const char*>(first), by_tangent * static_cast<int64_t>(sizeof(T)),
            wanted ? size : 0, bytes, size * (bytes / 64 + 1) / blocks + 1};
  }

  // The sums of one sample or chunk: the Gram matrix's upper triangle, [rounded(d), stride], and Jᵀ data, [S,
  // stride].
  FK_INLINE int64_t sums() const { return (rounded(size) + systems) * stride; }
  FK_INLINE int64_t scratch() const {
    return (rounded(size) + kLeftRows + 1) * tile_stride + sums() + (rounded(size) + 2) * stride;
  }
};

// Each of these loops has a function, and with it the registers, to itself.
FK_WIDTHS(multiply_rows, Products<float>)
FK_WIDTHS(multiply_rows, Products<double>)
FK_WIDTHS(copy_rows, RowCopy<float>)
FK_WIDTHS(copy_rows, RowCopy<double>)

// Sums over the columns of chunk `item`. `memory` holds the panel, the left rows and the weights.
template <int kBytes, typename T>
FK_INLINE void sum_columns(const MetricSolve<T>& a, int64_t item, int64_t last, T* sums, T* memory) {
  const int64_t rows = rounded(a.size), n = item / a.chunks, end = a.end_of(item);
  T* panel = memory;
  T* left = panel + rows * a.tile_stride;
  T* weights = left + kLeftRows * a.tile_stride;
  T* loads = sums + rows * a.stride;
  std::fill_n(sums, a.sums(), T(0));
  std::fill_n(panel + a.size * a.tile_stride, (rows - a.size) * a.tile_stride, T(0));
  const T* precision = a.precision + n * a.precision_by_sample;
  for (int64_t start = a.begin_of(item); start < end; start += a.tile) {
    constexpr int64_t kLanes = kBytes / sizeof(T);
    const int64_t count = std::min(a.tile, end - start),
                  padded_count = (count + kLanes - 1) / kLanes * kLanes;
    const T* from = a.jacobian + n * a.by_sample + start * a.by_column;
    Ahead ahead = a.ahead(item, start + count, last);
    copy_rows(RowCopy<T>{panel, a.tile_stride, from, a.by_tangent, a.by_column, count, padded_count}, 0,
              a.size);
    if (a.per_column) copy_rows(RowCopy<T>{weights, 0, precision + start, 0, 1, count, padded_count}, 0, 1);
    for (int64_t k = 0; k < a.size; k += kLeftRows) {
      const int64_t left_rows = std::min(kLeftRows, a.size - k);
      const T* unweighted = panel + k * a.tile_stride;
      if (a.per_column) {
        for (int64_t r = 0; r < left_rows; ++r) {
          for (int64_t c = 0; c < padded_count; ++c) {
            left[r * a.tile_stride + c] = weights[c] * unweighted[r * a.tile_stride + c];
          }
        }
      }
      const Products<T> gram{sums + k * a.stride, a.stride, a.per_column ? left : unweighted,
                             left_rows,           panel,    a.tile_stride,
                             padded_count,        &ahead};
      multiply_rows(gram, k / kRightRows * kRightRows, a.size);
    }
    for (int64_t s = 0; a.data != nullptr && s < a.systems; s += kLeftRows) {
      const int64_t left_rows = std::min(kLeftRows, a.systems - s);
      const T* data = a.data + (s * a.samples + n) * a.columns + start;
      copy_rows(RowCopy<T>{left, a.tile_stride, data, a.samples * a.columns, 1, count, padded_count}, 0,
                left_rows);
      const Products<T> load{loads + s * a.stride, a.stride,     left,  left_rows, panel,
                             a.tile_stride,        padded_count, &ahead};
      multiply_rows(load, 0, a.size);
    }
  }
  if (!a.per_column) {
    for (int64_t i = 0; i < rows * a.stride; ++i) sums[i] *= precision[0];
  }
}

// Factor and solutions of sample n from its sums; `memory` holds L, its inverse diagonal and a vector.
template <int kBytes, typename T>
FK_INLINE void solve_sample(const MetricSolve<T>& a, int64_t n, T* sums, T* memory) {
  const int64_t rows = rounded(a.size);
  T* lower = memory;
  T* inverse = lower + rows * a.stride;
  T* vector = inverse + a.stride;
  for (int64_t k = 0; k < rows; ++k) {
    T* diagonal = sums + k * a.stride + k;
    *diagonal = k < a.size ? metric_diagonal(*diagonal) : T(1);
  }
  const bool usable = factor_upper<T, kBytes>(sums, a.stride, a.size, inverse);
  if (usable) transpose_upper(lower, sums, a.stride, a.size);
  T* factor = a.factor + n * a.size * a.size;
  for (int64_t k = 0; k < a.size; ++k) {
    if (!usable) {
      std::fill_n(lower, k + 1, kNan<T>);
      std::fill_n(lower + k + 1, a.size - k - 1, T(0));
    }
    memcpy(factor + k * a.size, lower + (usable ? k * a.stride : 0), a.size * sizeof(T));
  }
  for (int64_t s = 0; s < a.systems; ++s) {
    const T* rhs = a.rhs + (s * a.samples + n) * a.size;
    T* solution = a.solution + (s * a.samples + n) * a.size;
    T* b = sums + (rows + s) * a.stride;
    T mark = usable ? T(0) : kNan<T>;
    for (int64_t k = 0; k < a.size; ++k) {
      b[k] += rhs[k];
      mark += poison(b[k]);
    }
    if (usable) solve_lower<T, kBytes>(lower, a.stride, a.size, inverse, b, vector);
    for (int64_t k = 0; k < a.size; ++k) solution[k] = b[k] + mark;
  }
}

template <int kBytes, typename T>
FK_INLINE void metric_solve_chunks_of(const MetricSolve<T>& a, int64_t begin, int64_t end) {
  const Scratch<T> memory(a.scratch());
  for (int64_t item = begin; item < end; ++item) {
    sum_columns<kBytes>(a, item, end, a.parts + item * a.sums(), memory.data());
  }
}

template <int kBytes, typename T>
FK_INLINE void metric_solve_samples_of(const MetricSolve<T>& a, int64_t begin, int64_t end) {
  const Scratch<T> memory(a.scratch());
  T* sums = memory.data();
  T* rest = sums + a.sums();
  for (int64_t n = begin; n < end; ++n) {
    if (a.parts == nullptr) {
      sum_columns<kBytes>(a, n, end, sums, rest);
      solve_sample<kBytes>(a, n, sums, rest);
      continue;
    }
    T* parts = a.parts + n * a.chunks * a.sums();
    for (int64_t chunk = 1; chunk < a.chunks; ++chunk) {
      for (int64_t i = 0; i < a.sums(); ++i) parts[i] += parts[chunk * a.sums() + i];
    }
    solve_sample<kBytes>(a, n, parts, rest);
  }
}

FK_WIDTHS(metric_solve_chunks, MetricSolve<float>)
FK_WIDTHS(metric_solve_chunks, MetricSolve<double>)
FK_WIDTHS(metric_solve_samples, MetricSolve<float>)
FK_WIDTHS(metric_solve_samples, MetricSolve<double>)

std::tuple<Tensor, Tensor> metric_solve(const Tensor& jacobian, const Tensor& precision_in,
                                        const Tensor& rhs_in, const std::optional<Tensor>& data_in) {
  const Tensor precision = as_contiguous(precision_in), rhs = as_contiguous(rhs_in);
  const std::optional<Tensor> data = as_contiguous(data_in);
  const int64_t size = jacobian.size(0), samples = jacobian.size(1), columns = jacobian.size(2);
  const Tensor solution = new_output(rhs, rhs.sizes());
  const Tensor factor = new_output(rhs, {samples, size, size});
  dispatch_full_precision(jacobian, "metric_solve", [&](auto element) {
    using T = decltype(element);
    MetricSolve<T> a(size, samples, columns, rhs.size(0));
    a.jacobian = pointer<T>(jacobian);
    a.by_tangent = jacobian.stride(0);
    a.by_sample = jacobian.stride(1);
    a.by_column = jacobian.stride(2);
    a.precision = pointer<T>(precision);
    a.precision_by_sample = precision.size(0) == 1 ? 0 : precision.size(1);
    a.per_column = precision.size(1) != 1;
    a.rhs = pointer<T>(rhs);
    a.data = pointer<T>(data);
    a.solution = output_pointer<T>(solution);
    a.factor = output_pointer<T>(factor);
    const int64_t work = (size + 1) * (size + 1) * (columns + size) / 8;
    if (a.chunks > 1) {
      const Tensor parts = new_output(rhs, {samples * a.chunks, a.sums()});
      a.parts = output_pointer<T>(parts);
      for_rows(samples * a.chunks, work / a.chunks,
               [&](int64_t begin, int64_t end) { metric_solve_chunks(a, begin, end); });
      for_rows(samples, work, [&](int64_t begin, int64_t end) { metric_solve_samples(a, begin, end); });
    } else {
      a.parts = nullptr;
      for_rows(samples, work, [&](int64_t begin, int64_t end) { metric_solve_samples(a, begin, end); });
    }
  });
  return {solution, factor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) { m.impl("metric_solve", TORCH_BOX(&metric_solve)); }

}  // namespace fisherkernels
