// Stands in for CUDA's header so that csrc/cuda compiles for the host: every thread of a block is a fiber,
// and the fibers of a block take turns between barriers. It shows wrong indices, races across a missing
// barrier and wrong sums without a GPU; it says nothing about speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

using std::max;
using std::min;
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned count() const { return x * y * z; }
};

namespace host {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  dim3 index;
  bool done;
};

inline std::vector<Fiber> fibers(kMaxThreads);
inline ucontext_t scheduler;
inline Fiber* running;
inline const std::function<void()>* kernel;
inline dim3 block_index, block_dim, grid_dim;
inline double exchange[kMaxThreads];

inline void enter() {
  (*kernel)();
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

inline void barrier() { swapcontext(&running->context, &scheduler); }

// Runs every fiber up to its next barrier, last thread first; false once all have returned.
inline bool run_to_barrier(unsigned threads) {
  bool waiting = false, returned = false;
  for (unsigned i = threads; i-- > 0;) {
    running = &fibers[i];
    if (running->done) continue;
    swapcontext(&scheduler, &running->context);
    (running->done ? returned : waiting) = true;
  }
  if (waiting && returned) throw std::logic_error("a thread returned while others wait at a barrier");
  return waiting;
}

inline void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  const unsigned threads = block.count();
  if (threads == 0 || threads > kMaxThreads || block.z > 64) throw std::logic_error("invalid block");
  if (grid.count() == 0 || grid.y > 65535 || grid.z > 65535) throw std::logic_error("invalid grid");
  kernel = &body;
  block_dim = block;
  grid_dim = grid;
  for (unsigned b = 0; b < grid.count(); ++b) {
    block_index = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[i];
      fiber.done = false;
      fiber.index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      makecontext(&fiber.context, enter, 0);
    }
    while (run_to_barrier(threads)) {
    }
  }
}

template <typename T>
T shuffle_xor(T value, int lanes) {
  const unsigned thread = static_cast<unsigned>(running - fibers.data());
  std::memcpy(&exchange[thread], &value, sizeof(T));
  barrier();
  std::memcpy(&value, &exchange[thread ^ lanes], sizeof(T));
  barrier();
  return value;
}

}  // namespace host

#define threadIdx (host::running->index)
#define blockIdx host::block_index
#define blockDim host::block_dim
#define gridDim host::grid_dim
#define __syncthreads() host::barrier()
#define __shfl_xor_sync(mask, value, lanes) host::shuffle_xor(value, lanes)
