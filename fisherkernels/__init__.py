"""Fused kernels and forward-computed derivatives for Fisher-divergence auto-encoders."""
