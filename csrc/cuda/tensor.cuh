// Host side shared by the CUDA operators: tensors in and out, dtype dispatch, the launch context.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace fisherkernels::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using BFloat16 = c10::BFloat16;

// Sums are kept in float32 for bfloat16 data, in the data's own type otherwise.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The caller's stream on the tensor's device, which stays the current device for as long as this lives.
struct Launch {
  explicit Launch(const Tensor& like) : guard(like.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

// Small parameters (variance, coefficients) are read in the type that sums are kept in.
inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return as_contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::empty(shape, type, std::nullopt, like.device());
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape) {
  return empty(like, shape, like.scalar_type());
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  return std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end());
}

// The shape of `like`, or [0] where the output is not wanted.
inline Tensor empty_if(bool wanted, const Tensor& like) {
  return empty(like, wanted ? shape_of(like) : std::vector<int64_t>{0});
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* read(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? read<T>(*tensor) : nullptr;
}

// Null where the output is not wanted.
template <typename T>
T* write(bool wanted, const Tensor& tensor) {
  return wanted ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

template <typename T>
T* write(const Tensor& tensor) {
  return write<T>(true, tensor);
}

// Calls body.operator()<T>() with the element type of the data.
template <typename Body>
void dispatch_type(const char* name, ScalarType type, Body&& body) {
  switch (type) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::BFloat16:
      return body.template operator()<BFloat16>();
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64 or bfloat16, got scalar type ",
                      static_cast<int>(type));
  }
}

// The same for operators that bfloat16 is not enough for.
template <typename Body>
void dispatch_full_precision(const char* name, ScalarType type, Body&& body) {
  switch (type) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    default:
      STD_TORCH_CHECK(false, name, ": expected float32 or float64, got scalar type ", static_cast<int>(type));
  }
}

// Calls body.operator()<N>(): N elements per access, 16 bytes of them where every row of every tensor starts
// on a 16-byte boundary, else one.
template <typename T, typename Body>
void dispatch_width(int64_t columns, std::initializer_list<const void*> pointers, Body&& body) {
  constexpr int kWide = 16 / sizeof(T);
  bool aligned = columns % kWide == 0;
  for (const void* pointer : pointers)
    aligned = aligned && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  if (aligned) {
    body.template operator()<kWide>();
  } else {
    body.template operator()<1>();
  }
}

}  // namespace fisherkernels::cuda
