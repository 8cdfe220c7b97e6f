"""The report as one HTML file that needs nothing else: style and pictures are inside it."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from fisherkernels.report import html, sections
from fisherkernels.report.evaluation import Contender, Evaluation
from fisherkernels.report.style import CSS


def render(fisher_ae: Contender, vae: Contender, evaluation: Evaluation, data: str, facts: dict[str, str]) -> str:
    """The page's HTML. data: a few words on the images; facts: label -> value, about the machine and the versions."""
    runs = len(fisher_ae.models)
    body = [
        f"<h1>Fisher auto-encoder and VAE on {escape(data)}</h1>",
        html.paragraph(
            f"{sections.count(runs, 'training run')} of each, tested on {evaluation.num_images} unseen images.",
            "subtitle",
        ),
        sections.verdict_section(evaluation),
        sections.training_section(fisher_ae, vae, facts),
        sections.losses_section(fisher_ae, vae),
        sections.reconstructions_section(evaluation, runs),
        sections.robustness_section(evaluation, runs),
        sections.samples_section(evaluation, runs),
        sections.latent_section(evaluation, runs),
        sections.method_section(evaluation),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Fisher AE and VAE on {escape(data)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def write(page: str, path: str | Path) -> Path:
    """Writes the page in one step, so that a killed run leaves the earlier report whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path
