import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from fisherkernels.measures import CubicMMD, mmd


@pytest.mark.parametrize("n", [2, 63, 200])
@pytest.mark.parametrize("tile", [16, 1000])
def test_tiles_give_what_whole_matrices_give(n, tile, monkeypatch):
    monkeypatch.setattr(mmd, "TILE", tile)
    codes, draws = torch.randn(n, 3, dtype=torch.float64) * 2 + 0.5, torch.randn(n, 3, dtype=torch.float64)
    metric = CubicMMD()
    metric.update(codes, draws)
    expected = poly_mmd(codes, draws)
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-10)
    batched = CubicMMD()
    for a, b in zip(codes.split(50), draws.split(50), strict=True):
        batched.update(a, b)
    assert batched.compute().item() == pytest.approx(expected.item(), rel=1e-10)


def test_it_tells_distributions_apart():
    torch.manual_seed(0)
    n = 3000

    def measure(codes):
        metric = CubicMMD()
        metric.update(codes, torch.randn(n, 4))
        return metric.compute().item()

    same, moved, narrow = measure(torch.randn(n, 4)), measure(torch.randn(n, 4) + 1), measure(0.3 * torch.randn(n, 4))
    assert abs(same) < 0.02 < narrow < moved


def test_the_kernel_is_the_cubic_one():
    metric = CubicMMD()
    codes, draws = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    metric.update(codes, draws)

    def k(a, b):
        return ((a @ b).item() / 2 + 1) ** 3

    across = sum(k(a, b) for a in codes for b in draws)
    assert metric.compute().item() == pytest.approx(k(*codes) + k(*draws) - across / 2)


def test_bad_input_is_named():
    metric = CubicMMD()
    with pytest.raises(ValueError, match=r"draws: expected shape \[3, 2\], that of codes \[N, d\], received \[2, 2\]"):
        metric.update(torch.zeros(3, 2), torch.zeros(2, 2))
    metric.update(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="codes: expected at least 2, received 1"):
        metric.compute()
