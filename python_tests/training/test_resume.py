"""A run that is cut off anywhere and resumed equals the run that was not, bit for bit."""

import lightning.pytorch as pl
import pytest
import torch

from fisherkernels import training


class Cut(Exception):
    """Stands for a kill: nothing is saved on the way out."""


class CutAt(pl.Callback):
    """Raises in the ``count``-th call of ``hook``."""

    def __init__(self, hook: str, count: int):
        self.left = count
        setattr(self, hook, self._tick)

    def _tick(self, *args, **kwargs) -> None:
        self.left -= 1
        if self.left == 0:
            raise Cut


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run: 3 epochs of 5 steps, a checkpoint every 2 steps."""
    return tmp_path_factory.mktemp("reference")


@pytest.fixture
def uninterrupted(reference, run):
    if not (reference / "metrics.csv").exists():
        run.fit(reference)
    return reference


@pytest.mark.parametrize(
    ("hook", "count"),
    [
        ("on_train_batch_start", 3),  # right after the checkpoint of step 2
        ("on_train_batch_end", 2),  # step 2 is logged, its checkpoint not yet written
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 5),  # the last batch of an epoch
        ("on_validation_start", 2),  # of an epoch whose last step is a multiple of every_n_steps
        ("on_validation_end", 1),  # validated and logged, best.ckpt not yet written
        ("on_train_epoch_start", 2),  # right after the checkpoint of the epoch
        ("on_before_backward", 8),  # in the middle of a step
        ("on_train_batch_end", 13),
        ("on_train_end", 1),
    ],
)
def test_cut_and_resume_is_exact(hook, count, uninterrupted, run, tmp_path):
    with pytest.raises(Cut):
        run.fit(tmp_path, [CutAt(hook, count)])
    last = tmp_path / "checkpoints" / "last.ckpt"
    run.fit(tmp_path, ckpt_path=last if last.exists() else None)
    run.assert_same(tmp_path, uninterrupted)


def test_batches_follow_seed_and_epoch(run, tmp_path):
    seen = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0])

    run.fit(tmp_path, [Record()], max_epochs=2)
    data = training.DigitsDataModule(batch_size=256, seed=3)
    data.setup()
    loader = data.train_dataloader()
    expected = [data.train_set[loader.order(epoch)[i * 256 : i * 256 + 256]][0] for epoch in range(2) for i in range(5)]
    assert len(seen) == 10 and all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_resume_from_best_is_exact(uninterrupted, run, tmp_path):
    with pytest.raises(Cut):
        run.fit(tmp_path, [CutAt("on_train_batch_end", 9)])
    run.fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / "best.ckpt")
    run.assert_same(tmp_path, uninterrupted)


def test_two_cuts(uninterrupted, run, tmp_path):
    with pytest.raises(Cut):
        run.fit(tmp_path, [CutAt("on_train_batch_end", 4)])
    with pytest.raises(Cut):
        run.fit(tmp_path, [CutAt("on_train_batch_end", 5)], ckpt_path=tmp_path / "checkpoints/last.ckpt")
    run.fit(tmp_path, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    run.assert_same(tmp_path, uninterrupted)


def test_max_steps_can_be_raised(uninterrupted, run, tmp_path):
    run.fit(tmp_path, max_steps=8)
    run.fit(tmp_path, max_steps=15, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    run.assert_same(tmp_path, uninterrupted)


def test_accumulated_batches(run, tmp_path):
    options = {"accumulate_grad_batches": 2, "batch_size": 128, "every_n_steps": 1}
    run.fit(tmp_path / "whole", **options)
    with pytest.raises(Cut):
        run.fit(tmp_path / "cut", [CutAt("on_before_backward", 16)], **options)
    run.fit(tmp_path / "cut", ckpt_path=tmp_path / "cut/checkpoints/last.ckpt", **options)
    run.assert_same(tmp_path / "cut", tmp_path / "whole")
    assert [row["step"] for row in run.rows(tmp_path / "whole") if row["train/loss"]] == [str(i) for i in range(15)]


def test_other_batches_refuse_to_resume(run, tmp_path):
    with pytest.raises(Cut):
        run.fit(tmp_path, [CutAt("on_train_batch_end", 3)])
    with pytest.raises(ValueError, match="trained with batch_size=256, this run has batch_size=128"):
        run.fit(tmp_path, ckpt_path=tmp_path / "checkpoints/last.ckpt", batch_size=128)


def test_rows_are_complete_and_ordered(uninterrupted, run):
    rows = run.rows(uninterrupted)
    kinds = [("val" if row["val/loss"] else "train", int(row["step"]), int(row["epoch"])) for row in rows]
    expected = []
    for epoch in range(3):
        expected += [("train", step, epoch) for step in range(5 * epoch, 5 * epoch + 5)]
        expected += [("val", 5 * epoch + 4, epoch)]
    assert kinds == expected


def test_a_kill_during_the_write_keeps_the_last_checkpoint(run, tmp_path, monkeypatch):
    run.fit(tmp_path, max_epochs=1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def half_write(checkpoint, path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(before[: len(before) // 2])
        raise Cut

    monkeypatch.setattr("lightning.pytorch.plugins.io.TorchCheckpointIO.save_checkpoint",
                        lambda self, checkpoint, path, options: half_write(checkpoint, path))  # fmt: skip
    with pytest.raises(Cut):
        training.AtomicCheckpointIO().save_checkpoint({}, last)
    assert last.read_bytes() == before
    assert torch.load(last, weights_only=True)["global_step"] == 5
