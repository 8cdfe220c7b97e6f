"""The examples in the docstrings run and give what they show."""

import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize(
    "name",
    [
        "losses.elbo",
        "losses.fisher_ae",
        "losses.fisher_net",
        "losses.fisher_shannon",
        "losses.inference",
        "losses.mutual_information",
        "losses.score_matching",
        "losses.scores",
        "priors.polynomial",
        "priors.standard_normal",
        "svgd",
    ],
)
def test_docstring_examples(name):
    module = importlib.import_module(f"fisherkernels.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0
