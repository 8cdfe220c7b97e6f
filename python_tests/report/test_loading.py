from pathlib import Path

import pytest
import torch

from fisherkernels import cli
from fisherkernels.report.loading import load_run

CONFIG = Path(__file__).parents[2] / "configs" / "vae_digits.yaml"


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    run = ["fit", "--config", str(CONFIG), "--trainer.max_steps", "1"]
    cli.main([*run, "--trainer.default_root_dir", str(tmp_path), "--trainer.limit_val_batches", "0"])
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert load_run(checkpoint).steps == 1

    checkpoint.write_bytes(b"what a killed copy leaves")
    with pytest.raises(ValueError, match=r"expected one that fisherkernels fit wrote, received .*last.ckpt, which"):
        load_run(checkpoint)
    torch.save({"state_dict": {}}, checkpoint)
    with pytest.raises(ValueError, match=r"received .*last.ckpt, without global_step, epoch"):
        load_run(checkpoint)
    torch.save([1.0], checkpoint)
    with pytest.raises(ValueError, match=r"received .*last.ckpt, without state_dict, global_step, epoch"):
        load_run(checkpoint)
