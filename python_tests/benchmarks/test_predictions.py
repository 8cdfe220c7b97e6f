import json

from benchmarks import predictions


def _case(title, **counts):
    return {"title": title, "bytes_moved": None, "contenders": {}} | counts


def _result(device, cases, **rest):
    return {"device": device, "cases": cases} | rest


CPU = _result(
    "cpu",
    {
        "copy": _case("[8]", bytes_moved=48_000_000),
        "product": _case("8 x 8", flops={"cheap": 67e9, "dear": 134e9}),
        "step": _case("no count"),
    },
)


def test_the_least_time_is_that_of_the_tighter_limit():
    copy, product = predictions.rows([CPU])
    assert copy == ("copy [8]", "48", "", "memory", "10", "not yet run", "")
    assert product == ("product 8 x 8", "", "67", "FLOPs", "1e+03", "not yet run", "")


def test_flops_are_those_of_our_own_route():
    flops = {"cheap": 67e9, "dear": 134e9}
    ((_, _, count, *_),) = predictions.rows([_result("cpu", {"a": _case("b", flops=flops, routes={"ours": "dear"})})])
    assert count == "134"


def test_a_measured_time_stands_beside_it():
    ours = {"ours": {"seconds": [20e-6] * 15}}
    measured = {"copy": _case("[8]", bytes_moved=48_000_000, contenders=ours)}
    copy, _ = predictions.rows([CPU, _result("cuda", measured)])
    assert copy[-2:] == ("20", "50%")
    copy, _ = predictions.rows([CPU, _result("cuda", measured, tf32=True)])
    assert copy[-2:] == ("not yet run", "")


def test_the_file_is_written(tmp_path, monkeypatch):
    (tmp_path / "ops-cpu.json").write_text(json.dumps(CPU))
    out = tmp_path / "table.md"
    monkeypatch.setattr("sys.argv", ["predictions", "--results", str(tmp_path), "--out", str(out)])
    predictions.main()
    assert "| copy [8] | 48 |  | memory | 10 | not yet run |  |" in out.read_text()
