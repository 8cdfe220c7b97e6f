"""What the page says about how the models were trained, and on which software."""

from __future__ import annotations

import platform
import time

from fisherkernels.info import info
from fisherkernels.report.loading import Run


def training_settings(runs: list[Run]) -> dict[str, str]:
    """Label -> value for the runs of one model, which share everything but their seed."""
    first = runs[0]
    model, options = first.model, first.config["model"]["init_args"]
    gammas = ", ".join(f"{run.model.variance.item():.4f}" for run in runs)
    rate = options["variance_learning_rate"]
    gamma = (
        f"learned from {options['variance']:g} with learning rate {rate:g}; ended at {gammas}"
        if options["learn_variance"]
        else f"fixed at {options['variance']:g}"
    )
    rows = {
        "loss": _loss(options),
        "likelihood": options.get("likelihood", "gaussian"),
        "prior": _prior(options),
        "decoder variance γ": gamma,
        "encoder": _net(options["encoder"]),
        "decoder": _net(options["decoder"]),
        "latent dimension": str(options["latent_dim"]),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "Monte-Carlo samples of z": str(options["num_samples"]),
        "optimiser": f"Adam, learning rate {options['learning_rate']:g}, β = {', '.join(map(str, options['betas']))}",
        "training images, batch size": f"{len(first.data.train_set):,}, {first.data.batch_size}",
        "steps (epochs)": f"{first.steps:,} ({first.epochs:,}); the last step's parameters are tested",
        "seeds": ", ".join(str(run.config["seed_everything"]) for run in runs),
    }
    return rows


def software() -> dict[str, str]:
    """Versions and machine, for the page's table."""
    facts = info()
    versions = facts["versions"]
    kernels = [name for name, status in facts["backends"].items() if status["active"]]
    return {
        "fisherkernels": versions["fisherkernels"],
        "kernels": f"native ({', '.join(kernels)})" if kernels else "PyTorch twins (no native library)",
        "torch": versions["torch"],
        "Python": versions["python"],
        "system": f"{platform.system()} {platform.machine()}, vector ISA {facts['vector_isa'] or 'unknown'}",
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _loss(options: dict) -> str:
    if "stability" in options:
        return f"Fisher divergence; stability: {options['stability']}, decoder gradient: {options['decoder_gradient']}"
    return f"negative ELBO, KL weight {options['beta']:g}"


def _prior(options: dict) -> str:
    if options.get("prior") != "polynomial":
        return "standard normal"
    constraint = {"none": "unconstrained"}.get(options["prior_constraint"], options["prior_constraint"])
    return f"polynomial exponential family of order {options['prior_order']}, learned, {constraint}"


def _net(config: dict) -> str:
    name = config["class_path"].rpartition(".")[2]
    hidden = config.get("init_args", {}).get("hidden")
    return f"{name}, hidden layers {', '.join(map(str, hidden))}" if hidden else name
