"""The cases of each suite."""

from importlib import import_module

SUITES = {
    "ops": (
        "ops.activation_tangents",
        "ops.gaussian_information",
        "ops.gaussian_score",
        "ops.norms",
        "ops.posterior_residual",
        "ops.score_moments",
        "ops.stability",
    ),
    "steps": (
        "steps.fisher_ae_mlp",
        "steps.fisher_ae_conv",
        "steps.fisher_ae_residual",
        "steps.fisher_ae_dropout",
        "steps.fisher_ae_transformer",
    ),
    "cycles": ("steps.algorithm_1",),
    "fisher_net": ("fisher_net.sample", "fisher_net.sample_backward", "fisher_net.peak", "fisher_net.step"),
    "laplacian": ("laplacian.cases",),
    "measures": ("measures.importance_sampling",),
    "svgd": ("ops.svgd_step",),
}


def cases(suite):
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {sorted(SUITES)}, got {suite!r}")
    return [case for module in SUITES[suite] for case in import_module(f".{module}", __package__).CASES]


def case(name):
    for suite in SUITES:
        for found in cases(suite):
            if found.name == name:
                return found
    raise ValueError(f"no case is named {name!r}")
