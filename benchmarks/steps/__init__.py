"""One file per pair of nets: a training step's loss and all its gradients, batch 128."""
