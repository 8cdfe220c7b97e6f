"""Fused operators: `fisherkernels.ops.NAME` checks its arguments and calls `torch.ops.fisherkernels.NAME`.

Every operator has a native CPU kernel, a native CUDA kernel (but for `relu_metric_factor`, `mlp_laplacian`, and what is
`linearize`'s own: `mlp_sweep`, those of norms, activations and attention) and a PyTorch twin; the twin runs wherever
there is no native kernel. Each is differentiable once, except `mlp_sweep` and the norms', which are as often as needed,
those of the solvers (`metric_solve`, `factor_solve`, `relu_metric_factor`, `cg_update`), through which `FisherMetric`
differentiates implicitly, `svgd_step`, whose particles carry no graph, and those of activations, attention and
LayerNorm, which only `linearize`'s own nodes call.
"""

import fisherkernels.ops._activation_operators  # noqa: F401  (linearize's own)
import fisherkernels.ops._attention_operators  # noqa: F401
import fisherkernels.ops._layer_norm_operators  # noqa: F401
import fisherkernels.ops._norm_operators  # noqa: F401
from fisherkernels.ops._library import BackendStatus, backends, load_libraries, use_twins
from fisherkernels.ops.activation_tangents import activation_tangents
from fisherkernels.ops.cg_update import cg_update
from fisherkernels.ops.factor_solve import factor_solve
from fisherkernels.ops.gaussian_information import gaussian_information
from fisherkernels.ops.gaussian_score import gaussian_score
from fisherkernels.ops.half_squared_norm import half_squared_norm
from fisherkernels.ops.metric_solve import metric_solve
from fisherkernels.ops.mlp_laplacian import mlp_laplacian
from fisherkernels.ops.mlp_sweep import mlp_sweep
from fisherkernels.ops.posterior_residual import posterior_residual
from fisherkernels.ops.relu_metric_factor import relu_metric_factor
from fisherkernels.ops.score_moments import score_moments
from fisherkernels.ops.stability_cotangent import stability_cotangent
from fisherkernels.ops.svgd_step import svgd_step

load_libraries()

__all__ = [
    "BackendStatus",
    "activation_tangents",
    "backends",
    "cg_update",
    "factor_solve",
    "gaussian_information",
    "gaussian_score",
    "half_squared_norm",
    "load_libraries",
    "metric_solve",
    "mlp_laplacian",
    "mlp_sweep",
    "posterior_residual",
    "relu_metric_factor",
    "score_moments",
    "stability_cotangent",
    "svgd_step",
    "use_twins",
]
