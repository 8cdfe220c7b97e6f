"""README.md's Python runs as printed, and the paths it names exist."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def text():
    return README.read_text()


def test_python_blocks_run(text, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names, terms = {}, []
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        assert names["loss"].isfinite()
        terms.append(set(names["terms"]))
        if "tangents" in block:
            jacobian = torch.func.vmap(torch.func.jacrev(names["decoder"]))(names["z"])  # [16, 64, 8]
            torch.testing.assert_close(names["tangents"], jacobian.movedim(2, 0))
            torch.testing.assert_close(names["jacobian"], jacobian)
    assert terms[0] == {"posterior", "reconstruction", "stability"}
    assert terms[-1] == {"prior", "reconstruction", "noise", "noise_prior"}
    metric = torch.einsum("nod,noe->nde", jacobian, jacobian) / 0.02 + torch.eye(8)
    torch.testing.assert_close(names["precision"], torch.linalg.eigvalsh(metric), rtol=1e-4, atol=1e-4)
    assert names["decoder"][0].weight.grad is not None
    assert "fallback" not in capsys.readouterr().out


def test_drop_in_example_is_ten_lines(text):
    block = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    body = [line for line in block.splitlines() if line and not line.startswith("import")]
    assert len(body) <= 10


def test_named_files_exist(text):
    root = README.parent
    named = set(re.findall(r"\b(?:configs|benchmarks|docs)/[\w/.]+\.(?:yaml|sh|md|png|svg)\b", text))
    assert "configs/fisher_ae_digits.yaml" in named
    assert not [path for path in named if not (root / path).is_file()]


def test_commands_exist(text):
    from fisherkernels.cli import COMMANDS

    for command in set(re.findall(r"^fisherkernels (\w+)", text, re.MULTILINE)):
        assert command in COMMANDS
    targets = set(re.findall(r"^make (\w+)|`make (\w+)`", text, re.MULTILINE))
    makefile = (README.parent / "Makefile").read_text()
    for target in {first or second for first, second in targets}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
