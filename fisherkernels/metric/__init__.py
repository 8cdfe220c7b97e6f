"""The Fisher metric M = J^T N^-1 J + I of a decoder: products, solves, samples, determinant, eigenvectors."""

from fisherkernels.metric.fisher_metric import FisherMetric
from fisherkernels.metric.outcome import SolveInfo

__all__ = ["FisherMetric", "SolveInfo"]
