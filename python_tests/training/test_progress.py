import re

from fisherkernels.training.progress import PlainProgress


def test_one_line_per_interval(run, tmp_path, capsys):
    run.fit(tmp_path / "all", [PlainProgress(interval=0.0)], enable_progress_bar=True, max_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    steps = [re.fullmatch(r"epoch (\d+), step (\d+), [\d.e-]+ s/step: train/loss -?[\d.]+(, val/loss -?[\d.]+)?", line)
             for line in lines]  # fmt: skip
    assert [(int(m[1]), int(m[2])) for m in steps] == [(step // 5, step + 1) for step in range(10)]
    assert [bool(m[3]) for m in steps] == [False] * 5 + [True] * 5

    run.fit(tmp_path / "few", [PlainProgress(interval=1000.0)], enable_progress_bar=True, max_epochs=2)
    assert len(capsys.readouterr().out.splitlines()) == 1
