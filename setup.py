"""Runs CMake (CMakeLists.txt describes the build) where setuptools would compile an extension."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Installs the two libraries and ``_native`` into the package being built (in place for an editable install)."""

    def run(self):
        in_place = self.inplace or self.editable_mode
        prefix = ROOT if in_place else Path(self.build_lib).resolve()
        build_dir = ROOT / "build" / "develop" if in_place else Path(self.build_temp).resolve()
        cmake = _find_tool("cmake")
        if cmake is None:
            raise SystemExit("fisherkernels: cmake is needed to build (pip install cmake ninja)")

        # What an earlier build left would otherwise be packed again: a CUDA library into a CPU-only wheel, say.
        shutil.rmtree(prefix / "fisherkernels" / "lib", ignore_errors=True)
        configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), f"-DPython_EXECUTABLE={sys.executable}"]
        ninja = _find_tool("ninja")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if not _configured_by(cmake, build_dir):
            configure.append("--fresh")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        build = [cmake, "--build", str(build_dir), "--parallel", jobs]
        install = [cmake, "--install", str(build_dir), "--prefix", str(prefix)]
        for command in (configure, build, install):
            if subprocess.run(command).returncode != 0:
                raise SystemExit(f"fisherkernels: the build failed in `{' '.join(command)}`; its message is above")

    def get_outputs(self):
        package = Path(self.build_lib) / "fisherkernels"
        return [str(path) for path in package.rglob("*.so")]

    def get_output_mapping(self):
        return {}


def _find_tool(name):
    """The tool installed beside this Python, even when its environment is not activated; else the one on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _configured_by(cmake, build_dir):
    """Whether this very cmake wrote the cache: an isolated build's tools are gone when it ends."""
    cache = build_dir / "CMakeCache.txt"
    return cache.exists() and f"CMAKE_COMMAND:INTERNAL={os.path.realpath(cmake)}\n" in cache.read_text()


setup(ext_modules=[Extension("fisherkernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
