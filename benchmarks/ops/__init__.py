"""One file per op: its inputs, the bytes it must move, and the ways to compute it with its gradients."""
