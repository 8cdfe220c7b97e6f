import json
import os
import subprocess
import sys

import pytest
import torch

import fisherkernels.info
from fisherkernels.info import info, render, runs_on
from fisherkernels.ops import backends


def test_facts_describe_this_process():
    facts = info()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["torch_cuda"] == torch.version.cuda
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts["backends"]) == {"cpu", "cuda"}
    for name, status in facts["backends"].items():
        assert status["active"] == backends()[name].active
        assert status["active"] == (status["reason"] is None)
    assert (facts["vector_isa"] is not None) == facts["backends"]["cpu"]["active"]


def test_text_names_every_fact():
    facts = info()
    text = render(facts)
    rows = dict(line.split(None, 1) for line in text.splitlines())
    assert rows["fisherkernels"] == facts["versions"]["fisherkernels"]
    assert rows["Python"] == facts["versions"]["python"]
    assert rows["threads"] == str(facts["threads"])
    for name, status in facts["backends"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"backend {name}"))
        assert status["path" if status["active"] else "reason"] in line


@pytest.mark.skipif(fisherkernels.info._native is None, reason="nothing was built")
def test_build_facts_agree_with_each_other():
    built = fisherkernels.info._native.build_facts()
    assert "cpu" in built["libraries"]
    if "cuda" in built["libraries"]:
        assert built["cuda_archs"] and built["cuda_toolkit"] and not built["cuda_missing"]
    else:
        assert built["cuda_missing"] and not built["cuda_archs"] and not built["cuda_toolkit"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
@pytest.mark.skipif(fisherkernels.info._native is None, reason="nothing was built")
def test_vector_isa_is_one_this_processor_has():
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    needed = {"AVX-512": "avx512f", "AVX2": "avx2"}.get(fisherkernels.info._native.vector_isa())
    assert needed is None or needed in flags


def _facts_elsewhere(code="", **environment):
    code += "\nfrom fisherkernels.info import info, render; render(); import json; print(json.dumps(info()))"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_reasons_without_libraries(tmp_path):
    facts = _facts_elsewhere(FISHERKERNELS_LIBRARY_DIR=str(tmp_path))
    assert not facts["backends"]["cpu"]["active"]
    assert facts["backends"]["cpu"]["path"].startswith(str(tmp_path))
    assert facts["backends"]["cpu"]["reason"] == "no such file"
    assert facts["vector_isa"] is None


def test_reason_when_the_twins_are_asked_for():
    facts = _facts_elsewhere(FISHERKERNELS_BACKEND="torch")
    assert [status["reason"] for status in facts["backends"].values()] == ["FISHERKERNELS_BACKEND=torch"] * 2


def test_without_native_module():
    facts = _facts_elsewhere("import sys; sys.modules['fisherkernels._native'] = None")
    assert "compiler" not in facts["versions"]
    assert facts["cuda_archs"] == [] and facts["vector_isa"] is None


def test_unbuilt_cuda_is_explained(monkeypatch):
    class CpuOnly:
        @staticmethod
        def build_facts():
            return dict.fromkeys(["torch", "compiler", "cuda_toolkit"], "") | {
                "cuda_archs": [],
                "cuda_missing": "no working nvcc found",
            }

        @staticmethod
        def vector_isa():
            return "baseline"

    missing = {"cpu": backends()["cpu"], "cuda": backends()["cuda"]._replace(active=False, reason="no such file")}
    monkeypatch.setattr(fisherkernels.info, "_native", CpuOnly)
    monkeypatch.setattr(fisherkernels.info, "backends", lambda: missing)
    assert info()["backends"]["cuda"]["reason"] == "not built: no working nvcc found"
    assert "not built: no working nvcc found" in render()


@pytest.mark.parametrize(
    ("arch", "capability", "expected"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("9.0", (8, 9), False),
        ("10.0+PTX", (10, 0), True),
        ("10.0+PTX", (12, 0), True),
        ("10.0+PTX", (9, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
    ],
)
def test_runs_on(arch, capability, expected):
    assert runs_on(arch, capability) is expected
