"""`python -m benchmarks run` measures, `python -m benchmarks report` writes the tables of README.md."""

import os

# Read by the OpenMP runtime when torch loads it: spinning threads would slow whoever shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
