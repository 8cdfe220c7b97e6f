"""One file per training step: its loss and all its gradients, or a cycle of several updates."""
