import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from fisherkernels.report import comparison, demo
from fisherkernels.report.loading import load_run

CONFIGS = Path(__file__).parents[2] / "configs"
FEW_STEPS = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the configs are part of the repository, not of the package")
def test_the_demo_trains_both_models_and_writes_the_report(tmp_path, capsys):
    threads = torch.get_num_threads()
    out, picture = tmp_path / "demo", tmp_path / "docs" / "demo.png"
    left_by_a_kill = out / "fisher_ae" / "run_0" / "checkpoints" / "last.ckpt"
    left_by_a_kill.parent.mkdir(parents=True)
    left_by_a_kill.write_text("half a checkpoint")
    report = demo.run_demo(out, CONFIGS, num_runs=1, overrides=FEW_STEPS, picture=picture)
    assert torch.get_num_threads() == threads
    text = report.read_text(encoding="utf-8")
    assert "1 training run of each, tested on 300 unseen images" in text
    assert "training time, one thread" in text and "MLPEncoder" in text
    assert "Under noise" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > 1000
    assert os.path.getsize(picture) < 300_000

    runs = [load_run(out / name / "run_0" / "checkpoints" / "last.ckpt") for name in ("fisher_ae", "vae")]
    assert [run.steps for run in runs] == [2, 2]
    sizes = [sum(p.numel() for m in (run.model.encoder, run.model.decoder) for p in m.parameters()) for run in runs]
    assert sizes[0] == sizes[1]

    checkpoints = [str(out / name / "run_0" / "checkpoints" / "last.ckpt") for name in ("fisher_ae", "vae")]
    again = tmp_path / "again.html"
    models = ["--fisher_ae", checkpoints[0], "--vae", checkpoints[1]]
    comparison.main(["report", *models, "--out", str(again), "--num_images", "50"])
    assert "tested on 50 unseen images" in again.read_text(encoding="utf-8")
    assert "Fisher auto-encoder and VAE on handwritten digits" in again.read_text(encoding="utf-8")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="fisher_ae_digits.yaml"):
        demo.run_demo(tmp_path / "out", configs=tmp_path)
    with pytest.raises(FileNotFoundError, match="last.ckpt"):
        load_run(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="num_runs: .* got 0"):
        demo.run_demo(tmp_path / "out", configs=tmp_path, num_runs=0)
