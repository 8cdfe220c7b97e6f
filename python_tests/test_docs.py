"""The Python of the guides in docs/ runs as printed."""

import re
import sys
from pathlib import Path

import pytest
import torch

from fisherkernels import cli

DOCS = Path(__file__).parents[1] / "docs"


def blocks_of(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")
def test_the_training_loops_run():
    names = {}
    for block in blocks_of("own_training_loop.md", "python"):
        exec(compile(block, "own_training_loop.md", "exec"), names)
    per_sample = {name: part.shape[0] for name, part in names["per_sample"].items()}
    assert set(per_sample.values()) == {32}
    assert all(torch.isfinite(p.grad).all() for p in names["model"].parameters())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning on loaders without workers
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    *python, models = blocks_of("tutorial.md", "python")
    names = {}
    for block in python:
        exec(compile(block, "tutorial.md", "exec"), names)
    assert set(names["terms"]) == {"posterior", "reconstruction", "stability"}
    assert names["trainer"].global_step == 20

    Path("my_models.py").write_text(models)
    Path("my_config.yaml").write_text(*blocks_of("tutorial.md", "yaml"))
    commands = re.findall(r"^fisherkernels (.*?)(?: *#.*)?$", *blocks_of("tutorial.md", "sh"), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["fit", "test", "predict", "fit"]
    for command in commands:
        assert cli.main([*command.split(), "--trainer.accelerator", "cpu"]) == 0, capsys.readouterr().err
    assert "32 steps" in capsys.readouterr().out  # four epochs of eight batches
    sys.modules.pop("my_models")
