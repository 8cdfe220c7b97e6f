"""`python -m benchmarks run` measures, `python -m benchmarks report` writes the tables of README.md.

The OpenMP runtime is left as users have it: its threads spin between parallel regions. OMP_WAIT_POLICY=PASSIVE makes
them sleep, which keeps times sane beside other work on the same cores and doubles the cost of small products; the
results say what was set.
"""
