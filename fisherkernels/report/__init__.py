"""The comparison report: metrics under noise, figures, one self-contained page. Needs ``fisherkernels[train]``."""

from fisherkernels.report.evaluation import Contender, evaluate
from fisherkernels.report.page import render, write

__all__ = ["Contender", "evaluate", "render", "write"]
