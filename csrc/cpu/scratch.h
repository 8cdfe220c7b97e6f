// Working memory of one thread for the length of a scope.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace fisherkernels {

// Uninitialised, aligned to a cache line. Up to kKept bytes are the thread's own and kept for the next scope,
// so that their pages fault in once; no two may be alive in a thread at a time.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t elements) {
    const size_t bytes = static_cast<size_t>(elements) * sizeof(T);
    if (bytes > kKept) {
      larger_ = allocate(bytes);
      return;
    }
    thread_local Memory kept = allocate(kKept);
    data_ = kept.get();
  }

  T* data() const { return static_cast<T*>(larger_ ? larger_.get() : data_); }

 private:
  static constexpr size_t kKept = size_t{2} << 20;
  static constexpr std::align_val_t kAlignment{64};

  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };
  using Memory = std::unique_ptr<void, Free>;

  static Memory allocate(size_t bytes) { return Memory(::operator new(bytes, kAlignment)); }

  Memory larger_;
  void* data_ = nullptr;
};

}  // namespace fisherkernels
