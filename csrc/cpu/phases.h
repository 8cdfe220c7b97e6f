// Work in phases, all of them in one parallel region.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/tensors.h"

namespace fisherkernels {

// Tasks of a phase go to whichever thread is free, so that one that wakes late does less, and a phase begins
// when all of the one before are done. Which thread runs a task changes nothing in what it computes.
class Phases {
 public:
  static int64_t threads() { return torch::stable::get_num_threads(); }

  // task(0), ..., task(count - 1), with `work` multiply-adds between them, in the phase that is the last one
  // now.
  template <typename Task>
  void add(int64_t count, int64_t work, Task&& task) {
    if (count == 0) return;
    phases_.back().parts.push_back({phases_.back().count += count, std::forward<Task>(task)});
    work_ += work;
  }

  // What is added from here on needs what was added before.
  void then() {
    if (phases_.back().count > 0) phases_.emplace_back();
  }

  void run() {
    const int64_t wanted = std::clamp<int64_t>(work_ / kThreadWork, 1, threads());
    torch::stable::parallel_for(0, wanted, 1, [&](int64_t, int64_t) {
      for (Phase& phase : phases_) help(phase);
    });
  }

 private:
  struct Part {
    int64_t end;
    std::function<void(int64_t)> task;
  };

  struct Phase {
    std::vector<Part> parts;
    int64_t count = 0;
    std::atomic<int64_t> taken{0}, done{0};
  };

  static constexpr int64_t kThreadWork = 1 << 19;
  static constexpr int kSpins = 1 << 10;

  // Does what is left of a phase, then waits for others that are still at it: running threads, for tasks are
  // taken by no others.
  void help(Phase& phase) {
    for (int64_t i; (i = phase.taken.fetch_add(1, std::memory_order_relaxed)) < phase.count;) {
      try {
        run_task(phase, i);
      } catch (...) {
        failed_ = true;
        throw;
      }
      phase.done.fetch_add(1, std::memory_order_release);
    }
    for (int spins = 0; phase.done.load(std::memory_order_acquire) < phase.count && !failed_; ++spins) {
      if (spins > kSpins) std::this_thread::yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  static void run_task(const Phase& phase, int64_t i) {
    int64_t begin = 0;
    for (const Part& part : phase.parts) {
      if (i < part.end) return part.task(i - begin);
      begin = part.end;
    }
  }

  std::deque<Phase> phases_{1};
  int64_t work_ = 0;
  std::atomic<bool> failed_{false};
};

}  // namespace fisherkernels
