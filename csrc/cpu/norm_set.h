// The sets of numbers that a norm takes mean and variance of: a channel of all samples (BatchNorm), or a
// group of a sample's channels (GroupNorm). In each, runs of numbers that lie together and share weight and
// bias.
#pragma once

#include <algorithm>
#include <array>

#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "cpu/sweep_activation.h"

namespace fisherkernels {

constexpr int64_t kShortRun = 256;      // numbers: a channel's runs that are shorter are gathered
constexpr int64_t kSummedBlock = 4096;  // numbers that are summed before the sum is added to those in double

template <typename T>
struct Norm {
  int64_t samples, channels, size;  // u is [N, C, L]
  int64_t groups;                   // of a sample's channels; 0 for BatchNorm
  Kind kind;
  T negative_slope;  // 1 for the identity, 0 for ReLU
  double eps;
  const T *u, *weight, *bias;  // weight and bias, [C], may be null
  std::array<const T*, 2> others;
  std::array<T*, 3> outputs;
  const T *mean, *rstd;        // of each set: [C], or [N, G]
  std::array<T*, 3> per_set;   // outputs: mean, rstd, variance
  std::array<T*, 2> per_part;  // outputs, gradients of weight and bias: [C], or of every sample [N, C]

  int64_t sets() const { return groups ? samples * groups : channels; }
  int64_t members() const { return groups ? channels / groups : 1; }  // channels of a set
  int64_t numbers() const { return groups ? members() * size : samples * size; }
};

// `runs` of `length` numbers, `stride` apart, some of which may be padding; `count` without that.
template <typename T>
struct Set {
  int64_t runs, length, stride, count;
  const T* u;
  std::array<const T*, 2> others;
  std::array<T*, 3> outputs;
  Kind kind;
  T slope, mean, rstd;
  const T *weights, *biases;  // of the first run; null for ones and zeros
  bool per_run;               // whether each run has its own
  T weight, bias;             // of the run at hand

  FK_INLINE void enter(int64_t run) {
    const int64_t at = per_run ? run : 0;
    weight = weights ? weights[at] : T(1);
    bias = biases ? biases[at] : T(0);
  }
};

// A sum in lanes of T, added up in double from time to time.
template <typename T, int kBytes>
struct Sum {
  Vector<T, kBytes> lanes{};
  T rest = 0;
  double total = 0;

  FK_INLINE void add(const Vector<T, kBytes>& v) { lanes += v; }
  FK_INLINE void add(const T& v) { rest += v; }
  FK_INLINE void gather() {
    constexpr size_t kLanes = kBytes / sizeof(T);
    std::array<double, kLanes> parts;
    for (size_t k = 0; k < kLanes; ++k) parts[k] = lanes[k];
    fold<kLanes / 2>(parts);
    total += parts[0] + rest;
    lanes = Vector<T, kBytes>{};
    rest = 0;
  }
  template <size_t kWidth, typename Parts>
  FK_INLINE static void fold(Parts& parts) {
    if constexpr (kWidth > 0) {
      for (size_t k = 0; k < kWidth; ++k) parts[k] += parts[k + kWidth];
      fold<kWidth / 2>(parts);
    }
  }
  FK_INLINE double take() {
    const double taken = total;
    total = 0;
    return taken;
  }
};

// body.at<V>(i) for all numbers of a set, V a vector or, at the ends of runs, one number; body.gather() from
// time to time, and body.leave(run) behind a run.
template <int kBytes, typename T, typename Body>
FK_INLINE void over(Set<T>& s, Body& body) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (int64_t run = 0; run < s.runs; ++run) {
    s.enter(run);
    for (int64_t begin = 0; begin < s.length; begin += kSummedBlock) {
      const int64_t end = run * s.stride + std::min(s.length, begin + kSummedBlock);
      int64_t i = run * s.stride + begin;
      for (; i + kLanes <= end; i += kLanes) body.template at<Vector<T, kBytes>>(i);
      for (; i < end; ++i) body.template at<T>(i);
      body.gather();
    }
    body.leave(run);
  }
}

template <typename T>
void copy_run(T* to, const T* from, int64_t n) {
  if (n < 16) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  } else {
    memcpy(to, from, n * sizeof(T));
  }
}

// How sets are walked: where they lie, or, where their runs are short, gathered. BatchNorm's become one run
// then; a group's, which have weights of their own, are padded to whole vectors, so that none of their
// numbers is taken alone.
template <typename T>
struct Walk {
  bool gather;
  int64_t runs, length;  // as walked
  int64_t arrays = 0;    // that a pass reads and writes

  Walk(const Norm<T>& norm, int64_t lanes) {
    const bool batch = !norm.groups;
    gather = norm.size < kShortRun && (batch || norm.size % lanes != 0);
    runs = batch ? (gather ? 1 : norm.samples) : norm.members();
    length = !gather ? norm.size : batch ? norm.numbers() : (norm.size + lanes - 1) / lanes * lanes;
    for (const T* p : {norm.u, norm.others[0], norm.others[1]}) arrays += p != nullptr;
    for (const T* p : norm.outputs) arrays += p != nullptr;
  }

  int64_t scratch() const { return gather ? arrays * runs * length : 0; }  // numbers
};

// A set's numbers; padding of u is the mean, that of the others 0. Outputs go back with put_back().
template <typename T>
class Gathered {
 public:
  Gathered(const Norm<T>& norm, const Walk<T>& walk, int64_t set, T* memory)
      : norm_(norm), walk_(walk), next_(memory) {
    const int64_t first = set * norm.members() % norm.channels;  // channel
    offset_ = norm.groups ? set * norm.numbers() : set * norm.size;
    pieces_ = norm.groups ? norm.members() : norm.samples;
    apart_ = norm.groups ? norm.size : norm.channels * norm.size;
    s.runs = walk.runs;
    s.length = walk.length;
    s.stride = walk.gather ? walk.length : apart_;
    s.count = norm.numbers();
    s.kind = norm.kind;
    s.slope = norm.negative_slope;
    s.weights = norm.weight ? norm.weight + first : nullptr;
    s.biases = norm.bias ? norm.bias + first : nullptr;
    s.per_run = norm.groups != 0;
    if (norm.mean) s.mean = norm.mean[set];
    if (norm.rstd) s.rstd = norm.rstd[set];
    s.u = input(norm.u, s.mean);
    for (size_t i = 0; i < s.others.size(); ++i) s.others[i] = input(norm.others[i], T(0));
    for (size_t i = 0; i < s.outputs.size(); ++i) s.outputs[i] = output(norm.outputs[i]);
  }

  void pad_with_mean() { pad(padded_, s.mean); }

  void put_back() {
    if (!walk_.gather) return;
    for (size_t i = 0; i < s.outputs.size(); ++i) {
      if (!s.outputs[i]) continue;
      for (int64_t k = 0; k < pieces_; ++k) {
        copy_run(norm_.outputs[i] + offset_ + k * apart_, s.outputs[i] + k * gathered_apart(), norm_.size);
      }
    }
  }

  Set<T> s{};

 private:
  int64_t gathered_apart() const { return norm_.groups ? walk_.length : norm_.size; }

  void pad(T* to, T value) {
    if (!walk_.gather || !norm_.groups) return;
    for (int64_t k = 0; k < pieces_; ++k) {
      std::fill(to + k * walk_.length + norm_.size, to + (k + 1) * walk_.length, value);
    }
  }

  const T* input(const T* from, T padding) {
    if (!from) return nullptr;
    if (!walk_.gather) return from + offset_;
    T* to = next_;
    next_ += walk_.runs * walk_.length;
    for (int64_t k = 0; k < pieces_; ++k) {
      copy_run(to + k * gathered_apart(), from + offset_ + k * apart_, norm_.size);
    }
    pad(to, padding);
    if (!padded_) padded_ = to;
    return to;
  }

  T* output(T* to) {
    if (!to) return nullptr;
    if (!walk_.gather) return to + offset_;
    T* gathered = next_;
    next_ += walk_.runs * walk_.length;
    return gathered;
  }

  const Norm<T>& norm_;
  const Walk<T>& walk_;
  T *next_, *padded_ = nullptr;  // padded_: u's
  int64_t offset_, pieces_, apart_;
};

}  // namespace fisherkernels
