"""How the native CPU kernels lay out rows of their own."""


def row_stride(width: int) -> int:
    """Elements from one row to the next: a multiple of 4, and not of 64, whose rows would meet in the caches."""
    padded = (width + 3) // 4 * 4
    return padded + 16 if padded % 64 == 0 else padded
