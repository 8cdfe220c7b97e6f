"""Posterior samples of a FisherNet, their gradients, their memory, and a training step."""
