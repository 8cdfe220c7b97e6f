#include "cpu/buffers.h"

#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>

// Since torch 2.11; null in an older torch.
extern "C" __attribute__((weak, visibility("default"))) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* result, int32_t layout, const uint8_t* opaque_metadata,
                int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace fisherkernels {
namespace {

Tensor from_torch(const Tensor& like, Sizes sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

#if defined(__linux__)

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kSmallest = kHugePage;
constexpr int kSlots = 64;

struct Block {
  void* data;
  size_t bytes;
};

// Trivially destructible: tensors may die after the library's static objects.
struct Cache {
  std::mutex mutex;
  Block blocks[kSlots];  // oldest first
  int count;
  size_t bytes;
};
Cache& cache() {
  static Cache* instance = new Cache{};
  return *instance;
}

size_t limit() {
  static const size_t bytes = [] {
    const char* text = std::getenv("FISHERKERNELS_CPU_CACHE_MB");
    return (text == nullptr ? size_t{256} : static_cast<size_t>(std::strtoull(text, nullptr, 10))) << 20;
  }();
  return bytes;
}

Block remove(Cache& c, int index) {
  const Block block = c.blocks[index];
  std::copy(c.blocks + index + 1, c.blocks + c.count, c.blocks + index);
  c.count -= 1;
  c.bytes -= block.bytes;
  return block;
}

// A cached block of at least `bytes` and at most a quarter more, or none.
Block take(size_t bytes) {
  Cache& c = cache();
  const std::unique_lock<std::mutex> lock(c.mutex, std::try_to_lock);
  int best = -1;
  if (lock.owns_lock()) {
    for (int i = 0; i < c.count; ++i) {
      const size_t size = c.blocks[i].bytes;
      if (size >= bytes && size <= bytes + bytes / 4 && (best < 0 || size <= c.blocks[best].bytes)) best = i;
    }
  }
  return best < 0 ? Block{nullptr, 0} : remove(c, best);
}

// A new mapping that starts at a multiple of the huge page, or none.
Block map(size_t bytes) {
  void* start = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return {nullptr, 0};
  const uintptr_t first = reinterpret_cast<uintptr_t>(start);
  const uintptr_t aligned = (first + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > first) munmap(start, aligned - first);
  munmap(reinterpret_cast<void*>(aligned + bytes), first + kHugePage - aligned);
  void* data = reinterpret_cast<void*>(aligned);
  madvise(data, bytes, MADV_HUGEPAGE);
  return {data, bytes};
}

void give_back(void* data, void* context) {
  Block block{data, reinterpret_cast<size_t>(context)};
  Block evicted[kSlots + 1];
  int count = 0;
  {
    Cache& c = cache();
    const std::unique_lock<std::mutex> lock(c.mutex, std::try_to_lock);
    if (lock.owns_lock() && block.bytes <= limit()) {
      while (c.count == kSlots || c.bytes + block.bytes > limit()) evicted[count++] = remove(c, 0);
      c.blocks[c.count++] = block;
      c.bytes += block.bytes;
    } else {
      evicted[count++] = block;
    }
  }
  for (int i = 0; i < count; ++i) munmap(evicted[i].data, evicted[i].bytes);
}

Tensor from_cache(const Tensor& like, Sizes sizes, ScalarType dtype, size_t bytes) {
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Block block = take(rounded);
  if (block.data == nullptr) block = map(rounded);
  if (block.data == nullptr) return from_torch(like, sizes, dtype);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  AtenTensorHandle handle = nullptr;
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const auto status =
      torch_from_blob(block.data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, type,
                      aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
                      &give_back, reinterpret_cast<void*>(block.bytes));
  if (status != AOTI_TORCH_SUCCESS) {
    give_back(block.data, reinterpret_cast<void*>(block.bytes));
    return from_torch(like, sizes, dtype);
  }
  return Tensor(handle);
}

#endif

}  // namespace

Tensor new_output(const Tensor& like, Sizes sizes, std::optional<ScalarType> dtype) {
  const ScalarType type = dtype.value_or(like.scalar_type());
#if defined(__linux__)
  size_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  for (size_t i = 0; i < sizes.size(); ++i) bytes *= static_cast<size_t>(sizes[i]);
  if (bytes >= kSmallest && bytes <= limit() && torch_from_blob != nullptr)
    return from_cache(like, sizes, type, bytes);
#endif
  return from_torch(like, sizes, type);
}

Tensor new_gradient(bool wanted, const Tensor& like, Sizes sizes) {
  const int64_t none = 0;
  return new_output(like, wanted ? sizes : Sizes(&none, 1));
}

}  // namespace fisherkernels
