"""Runs every metric of the report on the trained models."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fisherkernels.report.latent import embed, latent_means, nmi_curve
from fisherkernels.report.robustness import METRICS, robustness_curve, standard_noise
from fisherkernels.report.verdict import Comparison, compare

VARIANCES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
SHOWN_VARIANCES = (0.1, 0.2)


@dataclass
class Contender:
    """One kind of model, trained one or more times: ``models[s]`` has .reconstruct, .encode and .sample.

    ``logs[s]`` is the path of run s's metrics.csv; ``settings`` fills the page's table, label -> value.
    """

    name: str
    models: list
    logs: list = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Results:
    """What was measured on one contender. S runs, V noise variances, K noise draws, N test images."""

    errors: dict[str, Tensor]  # metric -> [S, V, K, N]
    nmi: Tensor  # [S, V, J], J <= K draws
    clean_reconstructions: Tensor  # [C, ...]
    noisy_reconstructions: dict[float, Tensor]  # variance -> [C, ...]
    samples: Tensor  # [M, ...]
    truncated_prior: bool  # the prior may be improper: it was cut to the range of the codes
    maps: dict[float, Tensor]  # variance -> [n, 2]


@dataclass
class Evaluation:
    """Both contenders on the same test images with the same noise, and the comparisons drawn from them."""

    fisher_ae: Results
    vae: Results
    variances: tuple[float, ...]
    shown_variances: tuple[float, ...]
    num_draws: int
    num_images: int
    labels: Tensor  # [N]
    examples: Tensor  # [C, ...]
    noisy_examples: dict[float, Tensor]  # variance -> [C, ...]
    mean_image_error: dict[str, float]  # metric -> error of always answering the training set's mean image
    under_noise: dict[str, Comparison]  # metric or "nmi" -> mean over the variances above 0
    clean: dict[str, Comparison]  # metric or "nmi" -> without noise
    per_level: dict[str, dict[float, Comparison]]  # metric -> variance -> comparison


def evaluate(
    fisher_ae: Contender,
    vae: Contender,
    images: Tensor,
    labels: Tensor,
    train_images: Tensor,
    *,
    variances: tuple[float, ...] = VARIANCES,
    shown_variances: tuple[float, ...] = SHOWN_VARIANCES,
    num_draws: int = 10,
    num_nmi_draws: int = 3,
    num_samples: int = 40,
    seed: int = 0,
) -> Evaluation:
    """Measures both contenders on test ``images`` [N, ...] in [0, 1] with integer ``labels`` [N].

    Pictures and maps show run 0; curves and comparisons use every run. The mean of ``train_images`` is the answer of
    a model that ignores its input: the level above which a reconstruction is worthless.
    """
    if len(fisher_ae.models) != len(vae.models):
        raise ValueError(
            f"vae: expected as many models as fisher_ae, whose runs are its pairs ({len(fisher_ae.models)}), "
            f"got {len(vae.models)}"
        )
    if 0.0 not in variances or max(variances) <= 0:
        raise ValueError(f"variances: expected 0 and at least one positive value, got {variances}")
    chosen = one_of_each_class(labels, 10)
    noise = standard_noise(images, num_draws, seed)[0]
    noisy = {v: images + v**0.5 * noise for v in shown_variances}
    mapped = {0.0: images, shown_variances[-1]: noisy[shown_variances[-1]]}

    def measure(contender: Contender) -> Results:
        for model in contender.models:
            model.eval()
        curves = [robustness_curve(m, images, variances, num_draws=num_draws, seed=seed) for m in contender.models]
        nmi = [nmi_curve(m, images, labels, variances, num_draws=num_nmi_draws, seed=seed) for m in contender.models]
        first = contender.models[0]
        with torch.no_grad():
            return Results(
                errors={name: torch.stack([curve.errors[name] for curve in curves]) for name in METRICS},
                nmi=torch.stack(nmi),
                clean_reconstructions=first.reconstruct(images[chosen]),
                noisy_reconstructions={v: first.reconstruct(x[chosen]) for v, x in noisy.items()},
                samples=first.sample(num_samples, generator=torch.Generator().manual_seed(seed)),
                truncated_prior=getattr(first, "truncates_prior", False),
                maps={v: embed(latent_means(first, x), seed=seed) for v, x in mapped.items()},
            )

    ours, theirs = measure(fisher_ae), measure(vae)
    clean = variances.index(0.0)
    positive = [i for i, v in enumerate(variances) if v > 0]

    def over(levels: list[int]) -> dict[str, Comparison]:
        table = {
            name: compare(
                ours.errors[name][:, levels].mean(dim=(1, 2)), theirs.errors[name][:, levels].mean(dim=(1, 2))
            )
            for name in METRICS
        }
        nmi = (results.nmi[:, levels].mean(dim=(1, 2))[:, None] for results in (ours, theirs))
        return table | {"nmi": compare(*nmi, lower_is_better=False)}

    by_level = {variances[i]: over([i]) for i in range(len(variances))}
    constant = train_images.mean(dim=0).expand_as(images)
    return Evaluation(
        fisher_ae=ours,
        vae=theirs,
        variances=tuple(variances),
        shown_variances=tuple(shown_variances),
        num_draws=num_draws,
        num_images=len(images),
        labels=labels,
        examples=images[chosen],
        noisy_examples={v: x[chosen] for v, x in noisy.items()},
        mean_image_error={name: metric(constant, images).mean().item() for name, metric in METRICS.items()},
        under_noise=over(positive),
        clean=over([clean]),
        per_level={name: {v: level[name] for v, level in by_level.items()} for name in (*METRICS, "nmi")},
    )


def one_of_each_class(labels: Tensor, count: int) -> Tensor:
    """Indices of ``count`` images, the first of each class in turn, then the second of each, and so on."""
    classes = [torch.nonzero(labels == c).flatten().tolist() for c in labels.unique().tolist()]
    depth = max(len(c) for c in classes)
    order = [c[i] for i in range(depth) for c in classes if i < len(c)]
    return torch.tensor(order[:count])
