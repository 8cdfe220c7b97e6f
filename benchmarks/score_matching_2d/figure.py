"""NLL of every method at every S, and samples of the best model beside the data."""

from pathlib import Path

from benchmarks.score_matching_2d.methods import METHODS
from benchmarks.score_matching_2d.runs import TEST, Data, points

SAMPLES_AT = 5  # S of the models whose samples are shown
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8}


def draw(done, path: Path) -> None:
    """A row per data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(run.name for run in done))
    methods = [method for method in METHODS if any(run.method == method for run in done)]
    columns = 2 + len(methods)
    with plt.rc_context(STYLE):
        size = (2.6 + 1.15 * (columns - 1), 1.55 * len(names) + 0.5)
        ratios = {"width_ratios": [2.2, *[1] * (columns - 1)]}
        figure, axes = plt.subplots(len(names), columns, figsize=size, squeeze=False, gridspec_kw=ratios)
        for row, name in zip(axes, names, strict=True):
            found = {(run.method, run.num_samples): result for run, result in done.items() if run.name == name}
            _draw_nll(row[0], found, methods)
            row[0].set_ylabel(f"{name}\nNLL, nats")
            _draw_samples(row[1:], name, found, methods)
        axes[-1, 0].set_xlabel("S")
        axes[0, 1].set_title("data")
        for ax, method in zip(axes[0, 2:], methods, strict=True):
            ax.set_title(METHODS[method].label.replace(" + ", "\n+ "), color=METHODS[method].color)
        figure.tight_layout(pad=0.4)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _draw_nll(ax, found, methods) -> None:
    """Mean and standard error over the seeds, methods side by side at each S."""
    counts = sorted({num_samples for _, num_samples in found})
    for i, method in enumerate(methods):
        x = [j + 0.12 * (i - (len(methods) - 1) / 2) for j, s in enumerate(counts) if (method, s) in found]
        values = [found[method, s]["nll"] for s in counts if (method, s) in found]
        errors = [v.std() / len(v) ** 0.5 if len(v) > 1 else 0 for v in values]
        means = [v.mean() for v in values]
        ax.errorbar(x, means, errors, fmt="o", ms=2.5, lw=1, color=METHODS[method].color)
    ax.set_xticks(range(len(counts)), map(str, counts))
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)


def _draw_samples(axes, name, found, methods) -> None:
    """Of the seed with the lowest NLL."""
    x = points(name, TEST, Data(0, 1000, 0, 0))
    shown = [(x, "#555555")]
    for method in methods:
        result = found.get((method, SAMPLES_AT))
        best = None if result is None else result["samples"][result["nll"].argmin()]
        shown.append((best, METHODS[method].color))
    limit = 1.25 * x.abs().max()
    for ax, (dots, color) in zip(axes, shown, strict=True):
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
        if dots is None:
            ax.set_axis_off()
        else:
            ax.scatter(*dots[:, :2].T, s=1, lw=0, color=color)
