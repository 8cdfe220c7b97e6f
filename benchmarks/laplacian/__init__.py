"""Exact Laplacians of networks with one output, and their gradients by the parameters."""
