"""Second derivatives of networks, forward: see :func:`laplacian`."""

from fisherkernels.second_order.laplacian import LaplacianOutput, laplacian

__all__ = ["LaplacianOutput", "laplacian"]
