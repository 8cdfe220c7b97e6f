import pytest

from fisherkernels.report.logs import read_metrics


def test_cells_become_curves(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,train/loss,val/loss\n10,1,2.5,\n0,0,4,\n10,1,,nan\n")
    curves = read_metrics(path)
    assert curves["train/loss"] == [(0, 4.0), (10, 2.5)]
    assert set(curves) == {"train/loss", "val/loss"}
    ((step, value),) = curves["val/loss"]
    assert step == 10 and value != value


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="metrics.csv"):
        read_metrics(tmp_path / "metrics.csv")
