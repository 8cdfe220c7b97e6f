"""Table and text of what has been trained."""

import csv
from pathlib import Path

import torch

from benchmarks.score_matching_2d.figure import draw
from benchmarks.score_matching_2d.methods import METHODS
from benchmarks.score_matching_2d.runs import Run, spread

COLUMNS = (
    "data_set,method,num_samples,seed,nll,score_matching,variance,active_dims,decoder_updates,encoder_updates,seconds"
)
MEASURES = ("nll", "score_matching", "variance", "active")
NAME = "points_2d"
Done = dict[Run, dict]


def write(done: Done, folder: Path) -> None:
    """NAME.csv, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(done, folder / f"{NAME}.csv")
    (folder / f"{NAME}.md").write_text(markdown(done) + "\n")
    draw(done, folder / f"{NAME}.png")


def write_csv(done: Done, path: Path) -> None:
    """One row per (data set, method, S, seed); seconds of the processor are shared out evenly among the seeds."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS.split(","))
        for run, found in done.items():
            settings = found["settings"]
            members, cycles = settings["members"], settings["cycles"]
            for seed in range(members):
                measures = [f"{found[name][seed].item():.5g}" for name in MEASURES]
                cost = [cycles, cycles * settings["encoder_updates"], f"{found['seconds'] / members:.1f}"]
                writer.writerow([run.name, run.method, run.num_samples, seed, *measures, *cost])


def markdown(done: Done) -> str:
    """Per data set: a line per method, NLL and variance at each S."""
    counts = sorted({run.num_samples for run in done})
    lines = []
    for name in dict.fromkeys(run.name for run in done):
        lines += [f"**{name}**", "", "| | " + " | ".join(f"NLL, S = {s} | gamma" for s in counts) + " |"]
        lines.append("|---|" + "---:|---:|" * len(counts))
        for method in dict.fromkeys(run.method for run in done if run.name == name):
            cells = [METHODS[method].label]
            for num_samples in counts:
                found = done.get(Run(name, method, num_samples))
                cells += [_cell(found["nll"]), _cell(found["variance"])] if found else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(values: torch.Tensor) -> str:
    return spread(values).replace("+-", "±")
