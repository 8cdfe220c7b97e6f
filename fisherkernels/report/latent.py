"""The latent means: how well their clusters agree with the classes, and a map of them."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from fisherkernels.report.robustness import standard_noise


@torch.no_grad()
def latent_means(model, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Posterior means of the images, [N, d], on the CPU."""
    return torch.cat([model.encode(batch)[0] for batch in images.split(batch_size)]).cpu()


def clustering_nmi(means: Tensor, labels: Tensor, *, seed: int = 0) -> float:
    """NMI = 2 I(C; Y) / (H(C) + H(Y)) of the k-means clusters C of the means with the labels Y, in [0, 1].

    means: [N, d]; labels: [N] integers; k is the number of classes. 1 is perfect agreement, 0 is chance in the limit
    of many images.
    """
    num_classes = len(labels.unique())
    clusters = KMeans(num_classes, n_init=4, random_state=seed).fit_predict(means.double().numpy())
    return float(normalized_mutual_info_score(labels.cpu().numpy(), clusters))


def nmi_curve(
    model, images: Tensor, labels: Tensor, variances: tuple[float, ...], *, num_draws: int = 3, seed: int = 0
) -> Tensor:
    """``clustering_nmi`` of the latent means of x + σ n, [V, K], for V variances and K noise draws.

    As Figure 3 of Elkhalil et al. (2021), except that k-means sees the latent means, not a t-SNE projection of them.
    """
    noise = standard_noise(images, num_draws, seed)
    rows = []
    for variance in variances:
        corrupted = [images + variance**0.5 * noise[k] for k in range(num_draws)]
        rows.append([clustering_nmi(latent_means(model, x), labels, seed=seed) for x in corrupted])
    return torch.tensor(rows, dtype=torch.float64)


def embed(means: Tensor, *, seed: int = 0, max_points: int = 1000) -> Tensor:
    """t-SNE of the first ``max_points`` latent means to the plane, [n, 2], centred and scaled to |coordinate| <= 1."""
    points = means[:max_points].double().numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
    plane = torch.from_numpy(tsne.fit_transform(points))
    plane = plane - plane.mean(dim=0)
    return plane / plane.abs().max()
