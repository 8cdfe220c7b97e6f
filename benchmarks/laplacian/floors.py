"""FLOPs that a Laplacian needs, counted over products of matrices, of a net of widths n, h_1, ..., h_k, 1.

Through the layers between the hidden units go the values, min(n, h_1) tangents and the second derivatives, through the
last one only these. The first layer's tangents are its weights; where n > h_1, half of W W^T and its Cholesky factor
replace them. In the backward pass every product becomes two, but for that with x, which needs no gradient.
"""


def forward(widths, batch):
    first = 2 * batch * widths[0] * widths[1]
    return float(first + _between_and_last(widths, batch))


def backward(widths, batch):
    """Forward and backward."""
    first = 2 * batch * widths[0] * widths[1]
    return float(2 * first + 3 * _between_and_last(widths, batch))


def reduction(n, h):
    """From n tangents to h."""
    return h * (h + 1) * n + h**3 / 3 if n > h else 0


def _between_and_last(widths, batch):
    n, *hidden, _ = widths
    between = sum(before * after for before, after in zip(hidden[:-1], hidden[1:], strict=True))
    return 2 * batch * ((min(n, hidden[0]) + 2) * between + hidden[-1]) + reduction(n, hidden[0])
