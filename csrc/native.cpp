// fisherkernels._native: what was built, and which vector instructions the CPU kernels run with here.
#include <pybind11/pybind11.h>

#include <string>

#include "build_facts.h"
#include "cpu/clones.h"

namespace py = pybind11;

namespace {

py::dict build_facts() {
  py::dict facts;
  facts["libraries"] = py::str(BUILD_LIBRARIES).attr("split")();
  facts["torch"] = BUILD_TORCH_VERSION;
  facts["compiler"] = BUILD_COMPILER;
  facts["cuda_toolkit"] = BUILD_CUDA_TOOLKIT;
  facts["cuda_archs"] = py::str(BUILD_CUDA_ARCHS).attr("split")();
  facts["cuda_missing"] = BUILD_CUDA_MISSING;
  facts["vector_bits"] = FK_HAS_CLONES ? FK_VECTOR_BITS : 128;
  return facts;
}

// The clone that the loader picks for the kernels of csrc/cpu (see FK_CLONES there).
std::string vector_isa() {
#if FK_HAS_CLONES
  __builtin_cpu_init();
  if (FK_VECTOR_BITS >= 512 && __builtin_cpu_supports("x86-64-v4")) return "AVX-512";
  if (FK_VECTOR_BITS >= 256 && __builtin_cpu_supports("x86-64-v3")) return "AVX2";
#endif
  return "baseline";
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("build_facts", &build_facts,
        "What this build holds: libraries, torch, compiler, widest vectors, CUDA toolkit and archs.");
  m.def("vector_isa", &vector_isa,
        "The vector instructions the CPU kernels' clones run with on this machine.");
}
