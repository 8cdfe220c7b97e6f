"""Objectives of variational score matching beside the ELBO on points in the plane: `python -m
benchmarks.score_matching_2d`.
"""
