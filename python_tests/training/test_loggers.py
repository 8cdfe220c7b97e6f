import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fisherkernels.training import CSVMetrics, TensorBoardEvents


def test_rows_reach_the_file_at_once_and_columns_grow(run, tmp_path):
    logger = CSVMetrics(tmp_path)
    logger.log_metrics({"epoch": 0, "train/loss": torch.tensor(0.1)}, step=0)
    assert run.rows(tmp_path) == [{"step": "0", "epoch": "0", "train/loss": repr(torch.tensor(0.1).item())}]
    logger.log_metrics({"epoch": 0.0, "val/loss": 2.0}, step=0)
    logger.log_metrics({"epoch": 1, "train/loss": 3.0}, step=1)
    assert run.rows(tmp_path) == [
        {"step": "0", "epoch": "0", "train/loss": "0.10000000149011612", "val/loss": ""},
        {"step": "0", "epoch": "0", "train/loss": "", "val/loss": "2.0"},
        {"step": "1", "epoch": "1", "train/loss": "3.0", "val/loss": ""},
    ]


def test_resume_drops_later_and_torn_rows(run, tmp_path):
    logger = CSVMetrics(tmp_path)
    for step in range(4):
        logger.log_metrics({"epoch": 0, "train/loss": float(step)}, step=step)
    with logger.path.open("a") as file:
        file.write("1,0,")  # cut short by a kill: looks like step 1
    logger = CSVMetrics(tmp_path)
    logger.resume(2)
    logger.log_metrics({"epoch": 0, "train/loss": 20.0}, step=2)
    assert [(row["step"], row["train/loss"]) for row in run.rows(tmp_path)] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "20.0"),
    ]


def test_resume_from_the_start_empties_the_file(run, tmp_path):
    logger = CSVMetrics(tmp_path)
    logger.log_metrics({"a": 1.0}, step=5)
    logger.resume(0)
    logger.log_metrics({"b": 2.0}, step=0)
    assert run.rows(tmp_path) == [{"step": "0", "b": "2.0"}]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_hides_what_was_logged_after_the_checkpoint(tmp_path):
    first = TensorBoardEvents(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.finalize("failed")
    time.sleep(1.1)  # files are read in the order of their names: the second, then a counter, of which 10 precedes 9
    second = TensorBoardEvents(tmp_path)
    second.resume(2)
    second.log_metrics({"train/loss": 20.0}, step=2)
    second.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 0.0), (1, 1.0), (2, 20.0)]
