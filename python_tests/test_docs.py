"""The Python of the guides in docs/ runs as printed."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")
def test_the_training_loops_run():
    text = (DOCS / "own_training_loop.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "own_training_loop.md", "exec"), names)
    per_sample = {name: part.shape[0] for name, part in names["per_sample"].items()}
    assert set(per_sample.values()) == {32}
    assert all(torch.isfinite(p.grad).all() for p in names["model"].parameters())
