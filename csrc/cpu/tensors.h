// torch's stable ABI, as the CPU kernels use it: contiguous arguments, outputs, dtype dispatch and threads.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "cpu/vector.h"

namespace fisherkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(as_contiguous(*t)) : std::nullopt;
}

// A contiguous tensor of the model's shape and dtype, or an error.
inline Tensor contiguous_like(const Tensor& t, const Tensor& model, const char* otherwise) {
  bool same = t.scalar_type() == model.scalar_type() && t.dim() == model.dim();
  for (int64_t d = 0; same && d < model.dim(); ++d) same = t.size(d) == model.size(d);
  STD_TORCH_CHECK(same, otherwise);
  return as_contiguous(t);
}

template <typename T>
const T* pointer(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
const T* pointer(const std::optional<Tensor>& t) {
  return t.has_value() ? pointer<T>(*t) : nullptr;
}

template <typename T>
T* output_pointer(const Tensor& t) {
  return t.numel() == 0 ? nullptr : static_cast<T*>(t.mutable_data_ptr());
}

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::BFloat16 ? ScalarType::Float : type;
}

// Calls f with a value of the element type: float, double or BFloat16.
template <typename F>
void dispatch(const Tensor& t, const char* op, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64 or bfloat16");
  }
}

// The same for operators that bfloat16 is not enough for: float or double.
template <typename F>
void dispatch_full_precision(const Tensor& t, const char* op, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      STD_TORCH_CHECK(false, op, ": expected float32 or float64");
  }
}

// A small tensor (variance, coefficients) in the accumulation type A.
template <typename A>
std::vector<A> values_as(const Tensor& t, const char* op) {
  const Tensor source = as_contiguous(t);
  std::vector<A> values(source.numel());
  dispatch(source, op, [&](auto element) {
    const auto* from = pointer<decltype(element)>(source);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<A>(load(from[i]));
  });
  return values;
}

template <typename A>
void fill_from(const Tensor& t, const std::vector<A>& values, const char* op) {
  dispatch(t, op, [&](auto element) {
    using T = decltype(element);
    T* to = static_cast<T*>(t.mutable_data_ptr());
    for (size_t i = 0; i < values.size(); ++i) store(to + i, static_cast<accumulate_t<T>>(values[i]));
  });
}

// A row-shaped output that bypasses the caches where it is too large for them.
template <typename T>
Output<T> output(const Tensor& t) {
  return {output_pointer<T>(t), t.numel() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes};
}

constexpr int64_t kGrain = 16384;  // elements that are worth a thread of their own

// f(begin, end) over rows of `row_elements` elements each, in parallel.
template <typename F>
void for_rows(int64_t rows, int64_t row_elements, const F& f) {
  if (rows == 0) return;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_elements)), f);
}

// Rows split into chunks for sums over rows: every chunk sums into its own slots, which are then added in
// order, so that the result depends on the shape only, never on the number of threads.
inline int64_t chunk_count(int64_t rows, int64_t row_elements) {
  return std::max<int64_t>(1, std::min({rows * row_elements / kGrain, rows, int64_t{64}}));
}

template <typename A>
std::vector<A> sum_chunks(const std::vector<A>& partial, int64_t chunks, int64_t size) {
  std::vector<A> total(partial.begin(), partial.begin() + size);
  for (int64_t c = 1; c < chunks; ++c) {
    for (int64_t i = 0; i < size; ++i) total[i] += partial[c * size + i];
  }
  return total;
}

}  // namespace fisherkernels
