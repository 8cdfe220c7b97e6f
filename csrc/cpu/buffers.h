// Memory for large CPU outputs, kept for reuse when they are freed.
//
// A fresh page costs a fault: 4 GB/s here, ten times slower than the kernels that fill it. The C allocator
// gives large blocks back to the system at once, so a training step would pay that for every output. Outputs
// of kSmallest bytes or more therefore live in mappings of whole huge pages, which return to a cache when the
// tensor dies:
// - the cache never holds more than FISHERKERNELS_CPU_CACHE_MB megabytes (default 256; 0 turns it off) nor
// more than
//   kSlots blocks; the oldest blocks are unmapped first;
// - any thread may allocate and free; nobody ever waits for the lock (a busy cache is by-passed), so a fork
// cannot
//   leave a child waiting for it;
// - such a tensor's storage cannot be resized in place, like that of torch.from_numpy.
// torch 2.10 has no stable way to make a tensor with a deleter; there, outputs come from torch's own
// allocator.
#pragma once

#include "cpu/tensors.h"

namespace fisherkernels {

// An uninitialised contiguous tensor on the CPU; dtype like's unless given.
Tensor new_output(const Tensor& like, Sizes sizes, std::optional<ScalarType> dtype = std::nullopt);

// A gradient of `like`'s dtype and the given sizes, or an empty tensor where it is not wanted.
Tensor new_gradient(bool wanted, const Tensor& like, Sizes sizes);

}  // namespace fisherkernels
