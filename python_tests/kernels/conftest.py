"""What the tests of Triton kernels share."""

import pytest


@pytest.fixture
def tensor_cores(monkeypatch):
    """The interpreter's dot sees of its factors what tensor cores see: 10 bits of mantissa."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exact = InterpreterBuilder.create_dot

    def truncated(handle):
        return TensorHandle((handle.data.view("int32") & -0x2000).view("float32"), handle.dtype)

    def dot(self, left, right, total, precision, *args):
        return exact(self, truncated(left), truncated(right), total, precision, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
