// svgd_step on CPU. Floor at M = 10,000 particles in d = 8, float32: M² pairs, each a difference and an FMA
// per coordinate, an exponential (17 operations) and an FMA per coordinate: 3 d + 17 = 41 vector operations
// for 8 pairs with AVX2, 513 million. Memory plays no part: all particles are 640 kB.
//
// A group of targets stands in the lanes of two vectors. Against a tile of sources, first the kernel is made,
// four sources at a time, then the sums over it, four coordinates at a time: like a matrix product, both take
// fewer loads than operations.
#include "math/svgd_step.h"

#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"
#include "math/exp.h"

namespace fisherkernels {
namespace {

constexpr int64_t kSources = 64;  // of a tile

template <typename T>
constexpr int64_t kTargets = 128 / sizeof(T);  // of a task: two vectors of the widest kind

template <typename T>
struct SvgdStep {
  const T* targets;  // [d, P]: particles, coordinate by coordinate, P a multiple of kTargets
  const T* sources;  // [M, d]: particles
  const T* weights;  // [M, Q]: svgd_source of each, Q = d rounded up to a multiple of 4, zeros there
  T* direction;      // [M, d]
  int64_t count, dimension, padded_count, padded_dimension;
  T inverse_bandwidth;
};

// kernel[q][v] = exp(-|x_i - x_j|² / h) for kMany sources j from `first` and the targets i at `at`.
template <int kMany, typename V, typename T>
FK_INLINE void make_kernel(V (*kernel)[2], V (&mass)[2], const SvgdStep<T>& a, int64_t at, int64_t first) {
  constexpr int64_t kLanes = lane_count<V>;
  V distance[kMany][2] = {};
  for (int64_t k = 0; k < a.dimension; ++k) {
    V target[2];
    for (int v = 0; v < 2; ++v) load_vector(target[v], a.targets + k * a.padded_count + at + v * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < kMany; ++q) {
      const T source = a.sources[(first + q) * a.dimension + k];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const V difference = target[v] - source;
        distance[q][v] += difference * difference;
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < kMany; ++q) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      kernel[q][v] = exp_of_negative(-a.inverse_bandwidth * distance[q][v]);
      mass[v] += kernel[q][v];
    }
  }
}

// sums[k] += sum_j kernel[j] weights[j, k] over n sources from `first`, k = 0..3 from `column`. The tile is
// summed apart: rounding errors then grow with its size and with the number of tiles, not with their product.
template <typename V, typename T>
FK_INLINE void add_tile(V (*sums)[2], const V (*kernel)[2], const SvgdStep<T>& a, int64_t first, int64_t n,
                        int64_t column) {
  V tile[4][2] = {};
  for (int64_t j = 0; j < n; ++j) {
    const T* weights = a.weights + (first + j) * a.padded_dimension + column;
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) tile[k][v] += kernel[j][v] * weights[k];
    }
  }
  for (int k = 0; k < 4; ++k) {
    for (int v = 0; v < 2; ++v) sums[k][v] += tile[k][v];
  }
}

template <typename V, typename T>
FK_INLINE void move_group(const SvgdStep<T>& a, int64_t at, V (*sums)[2]) {
  constexpr int64_t kLanes = lane_count<V>;
  V mass[2] = {}, kernel[kSources][2];
  std::fill_n(reinterpret_cast<T*>(sums), a.padded_dimension * 2 * kLanes, T(0));
  for (int64_t first = 0; first < a.count; first += kSources) {
    const int64_t n = std::min(kSources, a.count - first);
    V tile_mass[2] = {};
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) make_kernel<4>(kernel + j, tile_mass, a, at, first + j);
    for (; j < n; ++j) make_kernel<1>(kernel + j, tile_mass, a, at, first + j);
    for (int v = 0; v < 2; ++v) mass[v] += tile_mass[v];
    for (int64_t k = 0; k < a.padded_dimension; k += 4) add_tile(sums + k, kernel, a, first, n, k);
  }
  const T pull = 2 * a.inverse_bandwidth, inverse_count = T(1) / static_cast<T>(a.count);
  for (int64_t lane = 0; lane < std::min(2 * kLanes, a.count - at); ++lane) {
    for (int64_t k = 0; k < a.dimension; ++k) {
      const T weighted = sums[k][lane / kLanes][lane % kLanes], all = mass[lane / kLanes][lane % kLanes];
      a.direction[(at + lane) * a.dimension + k] =
          svgd_direction(weighted, all, a.targets[k * a.padded_count + at + lane], pull, inverse_count);
    }
  }
}

template <int kBytes, typename T>
FK_INLINE void svgd_step_tasks_of(const SvgdStep<T>& a, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  const Scratch<V> sums(a.padded_dimension * 2);
  const int64_t last = std::min(end * kTargets<T>, a.count);
  for (int64_t at = begin * kTargets<T>; at < last; at += 2 * lane_count<V>) {
    move_group(a, at, reinterpret_cast<V(*)[2]>(sums.data()));
  }
}

FK_WIDTHS(svgd_step_tasks, SvgdStep<float>)
FK_WIDTHS(svgd_step_tasks, SvgdStep<double>)

Tensor svgd_step(const Tensor& particles_in, const Tensor& score_in, const Tensor& bandwidth) {
  const Tensor particles = as_contiguous(particles_in), score = as_contiguous(score_in);
  const int64_t count = particles.size(0), dimension = particles.size(1);
  const Tensor direction = new_output(particles, particles.sizes());
  if (particles.numel() == 0) return direction;
  dispatch_full_precision(particles, "svgd_step", [&](auto element) {
    using T = decltype(element);
    const int64_t tasks = (count + kTargets<T> - 1) / kTargets<T>;
    const T inverse_bandwidth = T(1) / values_as<T>(bandwidth, "svgd_step")[0];
    const int64_t padded_count = tasks * kTargets<T>, padded_dimension = (dimension + 3) / 4 * 4;
    std::vector<T> targets(dimension * padded_count), weights(count * padded_dimension);
    const T *x = pointer<T>(particles), *s = pointer<T>(score);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < dimension; ++k) {
        const int64_t from = i * dimension + k;
        targets[k * padded_count + i] = x[from];
        weights[i * padded_dimension + k] = svgd_source(s[from], x[from], 2 * inverse_bandwidth);
      }
    }
    const SvgdStep<T> a{targets.data(),
                        x,
                        weights.data(),
                        output_pointer<T>(direction),
                        count,
                        dimension,
                        padded_count,
                        padded_dimension,
                        inverse_bandwidth};
    for_rows(tasks, kTargets<T> * count * (dimension + 1),
             [&](int64_t begin, int64_t end) { svgd_step_tasks(a, begin, end); });
  });
  return direction;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) { m.impl("svgd_step", TORCH_BOX(&svgd_step)); }

}  // namespace fisherkernels
