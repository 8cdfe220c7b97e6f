"""The sections of the page, each from what was measured to its HTML."""

from __future__ import annotations

from fisherkernels.report import html, verdict
from fisherkernels.report.evaluation import Contender, Evaluation
from fisherkernels.report.figures import METRIC_LABELS, PAGE, loss_panel, map_panel, noise_panel, png, strip, svg
from fisherkernels.report.logs import read_metrics
from fisherkernels.report.robustness import PROBABILITY_FLOOR

FISHER_AE_TERMS = {
    "loss": "total",
    "posterior": "posterior term",
    "reconstruction": "reconstruction term",
    "stability": "stability term",
}
VAE_TERMS = {"loss": "total (negative ELBO)", "reconstruction": "reconstruction term", "kl": "KL term"}
LOOK_AT_LOSSES = (
    "Thin lines are single training runs, the thick line their mean, the dashed one the mean on held-out images. "
    "Terms carry the weight they have in the total: sums over pixels, means over images. The vertical axis leaves out "
    "the first twentieth of training. A dashed line that turns up while the solid one falls is overfitting. The "
    "reconstruction term contains the constant −D/γ and is negative for small γ."
)


def verdict_section(e: Evaluation) -> str:
    positive = [v for v in e.variances if v > 0]
    span = f"noise variances {positive[0]:g} to {positive[-1]:g}"
    names = {"mse": "MSE per pixel", "bce": "BCE per pixel", "nmi": "NMI of clusters and classes (1 is best)"}
    rows = [
        (
            f"{names[name]}, {condition}",
            f"{c.fisher_ae:.4f}",
            f"{c.vae:.4f}",
            verdict.signed(c.difference),
            _interval(c),
            _outcome(c),
        )
        for condition, table in (("under noise", e.under_noise), ("clean images", e.clean))
        for name, c in table.items()
    ]
    header = ("", "Fisher AE", "VAE", "difference", "95% interval", "better")
    mse = e.under_noise["mse"]
    return (
        '<section id="verdict">'
        + html.paragraph(verdict.headline(mse), "verdict")
        + html.paragraph(verdict.numbers(mse, f"Mean reconstruction error (MSE per pixel) over {span}"))
        + html.paragraph(verdict.levels({v: e.per_level["mse"][v] for v in positive}) + _worthless(e))
        + html.paragraph(verdict.numbers(e.clean["mse"], f"Without noise, {_words(e.clean['mse'])}. MSE per pixel"))
        + html.table(f"Test set; under noise: mean over {span}", header, rows, stack=True)
        + "</section>"
    )


def _outcome(comparison: verdict.Comparison) -> str:
    return {"win": "Fisher AE", "loss": "VAE"}.get(comparison.outcome, comparison.outcome)


def _words(comparison: verdict.Comparison) -> str:
    words = {"win": "the Fisher AE was better", "loss": "the VAE was better"}
    return words.get(comparison.outcome, "there was no clear difference")


def _worthless(e: Evaluation) -> str:
    """Says from which noise on each model does worse than answering the mean image, if that happens."""
    parts = []
    for name, model in (("the Fisher AE", "fisher_ae"), ("the VAE", "vae")):
        beyond = [v for v, c in e.per_level["mse"].items() if getattr(c, model) > e.mean_image_error["mse"]]
        if beyond:
            parts.append(f"{name} at σ² = {', '.join(f'{v:g}' for v in beyond)}")
    if not parts:
        return ""
    return f" Worse than always answering the training set's mean image: {'; '.join(parts)}."


def training_section(fisher_ae: Contender, vae: Contender, facts: dict[str, str]) -> str:
    labels = list(dict.fromkeys([*fisher_ae.settings, *vae.settings]))
    rows = [(label, fisher_ae.settings.get(label, "–"), vae.settings.get(label, "–")) for label in labels]
    return html.section(
        "training",
        "What was trained",
        html.table("Both models, side by side", ("", fisher_ae.name, vae.name), rows),
        html.table("Software and machine", ("", ""), list(facts.items())),
    )


def losses_section(fisher_ae: Contender, vae: Contender) -> str:
    figures = []
    parts = ((1, fisher_ae, FISHER_AE_TERMS, PAGE.fisher_ae), (2, vae, VAE_TERMS, PAGE.vae))
    for number, contender, terms, color in parts:
        runs = [read_metrics(path) for path in contender.logs]
        if not runs:
            continue
        drawn = [
            svg(
                loss_panel(runs, f"train/{term}", f"val/{term}", title, "mean per image", color),
                f"{contender.name}: {title} against the training step.",
                height=2.8,
            )
            for term, title in terms.items()
            if any(f"train/{term}" in run for run in runs)
        ]
        look_at = LOOK_AT_LOSSES if contender is fisher_ae else "Lines as in Figure 1."
        layout = "panels two" if len(drawn) % 2 == 0 else "panels"
        figures.append(
            html.figure(html.panels(drawn, layout), number, f"Loss of the {contender.name}, by term.", look_at)
        )
    if not figures:
        figures = [html.paragraph("The training logs of these checkpoints are not at hand.")]
    return html.section("losses", "Loss curves", *figures)


def reconstructions_section(e: Evaluation, runs: int) -> str:
    def row(label: str, css: str, images) -> tuple[str, str, str]:
        return label, css, png(strip(images), f"{label}: {len(images)} test images side by side.")

    parts = [
        "<h3>Clean input</h3>",
        html.strips(
            [
                row("test images", "", e.examples),
                row("Fisher AE", "fisher-ae", e.fisher_ae.clean_reconstructions),
                row("VAE", "vae", e.vae.clean_reconstructions),
            ]
        ),
    ]
    for variance in e.shown_variances:
        parts += [
            f"<h3>Input with noise of variance {variance:g}</h3>",
            html.strips(
                [
                    row("what the models see", "", e.noisy_examples[variance]),
                    row("Fisher AE", "fisher-ae", e.fisher_ae.noisy_reconstructions[variance]),
                    row("VAE", "vae", e.vae.noisy_reconstructions[variance]),
                    row("what they should answer", "", e.examples),
                ]
            ),
        ]
    look_at = (
        "The same test images through both models. Under noise, look for answers that are a clean but different class: "
        "the encoder was led astray although the decoder draws well." + _first_run(runs)
    )
    figure = html.figure("".join(parts), 3, "Clean and noisy reconstructions, side by side.", look_at)
    return html.section("reconstructions", "Reconstructions", figure)


def robustness_section(e: Evaluation, runs: int) -> str:
    drawn = []
    for metric in ("mse", "bce"):
        tables = [results.errors[metric].mean(dim=3).transpose(1, 2).flatten(0, 1) for results in (e.fisher_ae, e.vae)]
        baseline = (e.mean_image_error[metric], "mean image")
        alt = f"{METRIC_LABELS[metric]} against the noise variance. " + " ".join(
            f"At {v:g}: Fisher AE {c.fisher_ae:.4f}, VAE {c.vae:.4f}." for v, c in e.per_level[metric].items()
        )
        drawn.append(svg(noise_panel(e.variances, *tables, METRIC_LABELS[metric], baseline), alt, 5.2, 3.8))
    look_at = (
        f"Error of the reconstruction against the clean image when noise of variance σ² is added to the input; lower "
        f"is better. Lines are means over {count(runs, 'training run')} and {e.num_draws} noise draws, bands ± 1 "
        f"standard deviation over runs and draws. Dotted: always answering the training set's mean image; a model "
        f"above it would do better to ignore its input."
    )
    figure = html.figure(html.panels(drawn, "panels two"), 4, "Robustness to noise, test set.", look_at)
    rows = [
        (
            f"{v:g}",
            f"{mse.fisher_ae:.4f}",
            f"{mse.vae:.4f}",
            f"{verdict.signed(mse.difference)} ({_interval(mse)})",
            f"{bce.fisher_ae:.4f}",
            f"{bce.vae:.4f}",
            f"{verdict.signed(bce.difference)} ({_interval(bce)})",
        )
        for v, mse, bce in ((v, e.per_level["mse"][v], e.per_level["bce"][v]) for v in e.variances)
    ]
    header = ("σ²", "MSE Fisher AE", "MSE VAE", "difference", "BCE Fisher AE", "BCE VAE", "difference")
    caption = "Errors per pixel; differences are Fisher AE minus VAE with their 95% interval"
    table = f"<details><summary>The numbers</summary>{html.table(caption, header, rows, numeric=True)}</details>"
    return html.section("robustness", "Robustness", figure, table)


def samples_section(e: Evaluation, runs: int) -> str:
    drawn = [
        f'<h3 class="{css}">{name}</h3>'
        + png(strip(results.samples, columns=10), f"{name}: images decoded from the prior.")
        for name, css, results in (("Fisher AE", "fisher-ae", e.fisher_ae), ("VAE", "vae", e.vae))
    ]
    look_at = (
        "Latent codes drawn from each model's prior, decoded, unselected. Look for legible images of every class, and "
        "for repeats." + _first_run(runs)
    )
    if e.fisher_ae.truncated_prior:
        look_at += (
            " The Fisher AE's unconstrained polynomial prior is no proper density and was fitted only where the "
            "codes lie: each coordinate is drawn from it truncated to the range of the validation images' codes."
        )
    return html.section("samples", "Prior samples", html.figure(html.panels(drawn), 5, "Prior samples.", look_at))


def latent_section(e: Evaluation, runs: int) -> str:
    drawn = []
    for name, results in (("Fisher AE", e.fisher_ae), ("VAE", e.vae)):
        for variance, points in results.maps.items():
            title = f"{name}, " + (f"noise variance {variance:g}" if variance else "clean images")
            panel = map_panel(points, e.labels[: len(points)], title)
            drawn.append(svg(panel, f"t-SNE map of the latent means. {title}.", 4.4, 4.1))
    maps = html.figure(
        html.panels(drawn, "panels two"),
        6,
        "Latent map.",
        "t-SNE of the test images' posterior means; every mark is an image, drawn as its class. Look at whether "
        "the classes stay apart as the noise grows. Axes have no unit, and distances between far groups mean nothing."
        + _first_run(runs),
    )
    tables = [results.nmi.transpose(1, 2).flatten(0, 1) for results in (e.fisher_ae, e.vae)]
    alt = "NMI against the noise variance. " + " ".join(
        f"At {v:g}: Fisher AE {c.fisher_ae:.2f}, VAE {c.vae:.2f}." for v, c in e.per_level["nmi"].items()
    )
    nmi = html.figure(
        html.panels([svg(noise_panel(e.variances, *tables, METRIC_LABELS["nmi"]), alt, 5.2, 3.6)], "panels two"),
        7,
        "Clusters under noise.",
        f"k-means on the noisy images' posterior means, compared with the true classes; higher is better, 1 is perfect."
        f" Means and ± 1 standard deviation over {count(runs, 'training run')} and {e.fisher_ae.nmi.shape[2]} "
        f"noise draws. Look at how fast each line falls.",
    )
    return html.section("latent", "Latent space", maps, nmi)


def method_section(e: Evaluation) -> str:
    comparison = e.under_noise["mse"]
    scope = (
        "over training runs, run s of one model paired with run s of the other: it holds for new trainings of this kind"
        if comparison.unit.startswith("training")
        else "over test images, paired image by image: it holds for these trained models, not for new trainings"
    )
    return html.section(
        "method",
        "How it was measured",
        html.bullets(
            [
                "Noise: x + σ n with n standard normal, added to test images in [0, 1] and not clipped; both models "
                "meet the same draws. Neither model saw noise in training.",
                "Reconstruction: the decoder's output at the posterior mean, no sampling.",
                "Error: against the clean image, mean over pixels, images and draws. "
                f"BCE clamps the answer to [{PROBABILITY_FLOOR:g}, {1 - PROBABILITY_FLOOR:g}].",
                f"Verdict: MSE, averaged over the noise variances above 0 with equal weight. A difference counts when "
                f"its 95% Student t interval excludes 0; the interval is {scope}. The other comparisons are not "
                f"corrected for their number.",
                "Clusters: k-means (k = number of classes, 4 starts) on the posterior means; "
                "NMI = 2 I(C; Y) / (H(C) + H(Y)). The paper clusters a t-SNE projection instead.",
                "Scope: one data set, one architecture, one setting of each loss. It shows what these trainings "
                "did, and does not rank the methods.",
                "Source: Elkhalil et al., Fisher Auto-Encoders, AISTATS 2021, section 4.",
            ]
        ),
    )


def _interval(c: verdict.Comparison) -> str:
    return f"{verdict.signed(c.low)} to {verdict.signed(c.high)}"


def _first_run(runs: int) -> str:
    return f" Shown: the first of {runs} training runs." if runs > 1 else ""


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
