import json

import pytest

from benchmarks import __main__ as cli
from benchmarks.report import MARKERS, NOT_RUN, render, table, write


def _result(rounds=15):
    milliseconds = {"ours": 4.0, "eager autograd": 2.0}
    contenders = {
        name: {"relative_rms_error": {}, "seconds": [median * 1e-3] * rounds, "peak_bytes": 5_000_000}
        for name, median in milliseconds.items()
    }
    contenders["torch.compile"] = {"relative_rms_error": {}, "failed": "Unsupported: no"}
    return {
        "suite": "ops",
        "device": "cpu",
        "machine": {
            "cpu": "A CPU",
            "cpu_isa": "AVX2",
            "threads": 2,
            "torch": "2.15.0",
            "date": "2026-01-01",
            "commit": "abc",
            "backends": {"cpu": False, "cuda": False},
        },
        "allocator": "default",
        "copy_bytes_per_second": 10e9,
        "cases": {
            "op": {
                "title": "[8]",
                "bytes_moved": 10_000_000,
                "traffic": "one array",
                "rounds": rounds,
                "contenders": contenders,
            }
        },
    }


def test_table_shows_slower_like_faster_and_failed_as_failed():
    rows = [line for line in table(_result()).splitlines() if line.startswith("| op")]
    assert rows == [
        "| op [8] | ours | 4 | 4 to 4 | 1.00 | 5 | 25% |",
        "| op [8] | eager autograd | 2 | 2 to 2 | 0.50 | 5 | 50% |",
        "| op [8] | torch.compile | failed |  |  |  |  |",
    ]
    assert "- op, torch.compile: Unsupported: no" in table(_result())


def _result_with_flops():
    result = _result() | {"gemm_flops_per_second": 100e9}
    case = result["cases"]["op"]
    case |= {"bytes_moved": None, "traffic": "", "flops": {"direct": 0.1e9, "CG": 0.2e9}, "facts": {"images": "a"}}
    case["routes"] = {"eager autograd": "CG"}
    case["contenders"]["ours"]["relative_rms_error"] = {"float32": {"worst residual": 2e-6}}
    case["contenders"]["peer"] = {"relative_rms_error": {}, "not installed": "peer.core"}
    return result


def test_flops_of_a_route_make_the_limit_and_a_missing_peer_is_said():
    text = table(_result_with_flops())
    rows = [line for line in text.splitlines() if line.startswith("| op")]
    assert rows == [
        "| op [8] | ours | 4 | 4 to 4 | 1.00 | 5 | 2e-06 | 25% |",
        "| op [8] | eager autograd | 2 | 2 to 2 | 0.50 | 5 |  | 100% |",
        "| op [8] | torch.compile | failed |  |  |  |  |  |",
        "| op [8] | peer | not installed |  |  |  |  |  |",
    ]
    header = next(line for line in text.splitlines() if line.startswith("| case"))
    assert header.endswith("| peak MB | worst residual | of FLOP limit |")
    assert "- op: direct 0.1 GFLOP, CG 0.2 GFLOP" in text and "- op: images a" in text
    assert "matrix product 100 GFLOP/s" in text


def test_heading_says_when_no_native_kernel_ran():
    assert "PyTorch twins, no native kernels" in table(_result())


def test_heading_says_what_products_and_passes_were_timed():
    assert "float32, medians and quartiles of 15 interleaved rounds, forward and backward" in table(_result())
    laplacian = table(_result() | {"suite": "laplacian", "tf32": True})
    assert "float32, products in TF32, medians and quartiles of 15 interleaved rounds; measured" in laplacian


def test_reported_results_need_fifteen_rounds():
    with pytest.raises(ValueError, match="op: 14 rounds, a reported result needs at least 15"):
        render([_result(rounds=14)])


def test_missing_results_are_said():
    ops_alone = render([_result()])
    assert NOT_RUN in ops_alone
    others = "steps and cycles and fisher_net and laplacian and measures and svgd."
    assert f"CPU: no result is committed for {others}" in ops_alone
    assert f"CPU: no result is committed for ops and {others}" in render([])


def test_report_rewrites_only_what_is_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    begin, end = MARKERS
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    (tmp_path / "ops-cpu.json").write_text(json.dumps(_result()))
    cli.main(["report", "--results", str(tmp_path), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n**ops, CPU**") and text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert not write(tmp_path, readme)  # a second run changes nothing


def test_report_refuses_a_readme_without_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="expected one <!-- benchmarks:begin -->"):
        write(tmp_path, readme)
