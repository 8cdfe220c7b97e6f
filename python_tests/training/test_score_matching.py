import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from fisherkernels import losses, nets
from fisherkernels.training import DigitsDataModule, NonFiniteLossError, ScoreMatching, seeds

OBJECTIVES = ("m1", "m2", "m3", "elbo", "joint_fd")
TERMS = {"m1": ("score",), "m2": ("second_moment", "mean_score"), "m3": ("cross", "mean_score"),
         "elbo": ("reconstruction", "kl"), "joint_fd": ("posterior", "reconstruction", "stability")}  # fmt: skip
INFERENCE = {"kl": ("reconstruction", "kl"), "fisher": ("posterior",)}


@pytest.fixture
def x():
    return torch.rand(6, 1, 8, 8)


@pytest.fixture(autouse=True)
def quiet():
    """One sample makes M2 and M3 warn; the loss's own tests look at that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def noise_of(model, x):
    return model.draw_noise(x, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "m1", "num_samples": 1},
        {"objective": "m2", "unbiased": True, "num_samples": 3},
        {"objective": "m3", "variance": 0.3},
        {"objective": "elbo"},
        {"objective": "joint_fd", "variance": 0.5},
    ],
)
def test_options_reach_the_loss(options, x, run):
    model = run.model(ScoreMatching, **options).eval()
    noise = noise_of(model, x)
    objective = options["objective"]
    common = {"variance": model.variance, "num_samples": model.num_samples, "noise": noise}
    networks = (model.encoder, model.decoder, x)
    if objective == "elbo":
        expected = losses.elbo_loss(*networks, **common)
    elif objective == "joint_fd":
        expected = losses.fisher_ae_loss(*networks, **common)
    else:
        unbiased = options.get("unbiased", False)
        expected = losses.score_matching_loss(*networks, objective=objective, unbiased=unbiased, **common)
    got = model.loss(x, noise)
    assert tuple(got.terms) == TERMS[objective]
    torch.testing.assert_close(got.terms, expected.terms)
    assert model.variance.item() == pytest.approx(options.get("variance", 1.0))
    if objective == "joint_fd":
        torch.testing.assert_close(model.inference_loss(x, noise).loss, expected.loss)


@pytest.mark.parametrize(
    ("options", "reparametrize"),
    [
        ({"divergence": "kl"}, True),
        ({"divergence": "fisher"}, False),
        ({"divergence": "fisher", "reparametrize": True}, True),
    ],
)
def test_options_reach_the_inference_loss(options, reparametrize, x, run):
    model = run.model(ScoreMatching, variance=0.4, **options).eval()
    noise = noise_of(model, x)
    expected = losses.inference_loss(
        model.encoder, model.decoder, x, divergence=options["divergence"], reparametrize=reparametrize,
        variance=0.4, num_samples=5, noise=noise,
    )  # fmt: skip
    got = model.inference_loss(x, noise)
    assert tuple(got.terms) == INFERENCE[options["divergence"]]
    parameters = list(model.encoder.parameters())
    torch.testing.assert_close(got.terms, expected.terms)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, parameters), torch.autograd.grad(expected.loss, parameters)
    )


def by_hand(model, steps, batch_size, updates, bilevel):
    """Algorithm 1 without Lightning, on the digits' batches."""
    data = DigitsDataModule(batch_size=batch_size, seed=3)
    data.setup()
    batches = iter(data.train_dataloader())
    phi = torch.optim.Adam(model.encoder.parameters(), lr=2e-3, betas=(0.9, 0.999))
    theta = torch.optim.Adam(
        [{"params": model.decoder.parameters(), "lr": 1e-3}, {"params": [model.log_variance], "lr": 1e-2}],
        betas=(0.9, 0.999),
    )
    model.train()
    logged = []
    for step in range(steps):
        x, _ = next(batches)
        key = (seeds.TRAIN, 3, step, step, 0)

        def draw(*more, x=x, key=key):
            return torch.randn(2, len(x), 3, generator=seeds.generator(*key, *more))

        torch.manual_seed(seeds.fold_seed(*key, 1))
        phi.zero_grad()
        model.inference_loss(x, draw(2)).loss.backward()
        phi.step()
        if bilevel and (step + 1) % updates == 0:
            output = model.bilevel_loss(x, torch.stack([draw(3), draw(4), draw()]))
        else:
            output = model.loss(x, draw())
        logged.append(output.loss.item())
        if (step + 1) % updates == 0:
            theta.zero_grad()
            output.loss.backward()
            theta.step()
    return logged


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "m1", "encoder_updates": 1},
        {"objective": "m2", "encoder_updates": 2, "divergence": "fisher"},
        {"objective": "joint_fd", "encoder_updates": 2},
        {"objective": "m3", "encoder_updates": 2, "bilevel_steps": 2},
    ],
)
def test_training_is_algorithm_1(options, run, tmp_path):
    common = {"num_samples": 2, "encoder_learning_rate": 2e-3}
    model, twin = (run.model(ScoreMatching, **common, **options) for _ in range(2))
    trainer = run.fit(tmp_path, model=model, max_steps=5)
    assert trainer.global_step == 5
    updates = options["encoder_updates"]
    logged = by_hand(twin, 5, 256, updates, "bilevel_steps" in options)
    for (name, got), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name != "encoder.1.bias":  # in front of BatchNorm: its gradient is rounding, and Adam makes steps of it
            torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")
    rows = [row for row in run.rows(tmp_path) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(5))
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(logged, rel=1e-4)
    for row in rows:
        total = sum(float(row[f"train/{term}"]) for term in TERMS[options["objective"]])
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4, abs=1e-3)
        inference = TERMS["joint_fd"] if options["objective"] == "joint_fd" else INFERENCE[
            options.get("divergence", "kl")]  # fmt: skip
        assert all(math.isfinite(float(row[f"train/inference_{term}"])) for term in inference)
    variances = [float(row["train/variance"]) for row in rows]
    assert all((a == b) == ((step + 1) % updates != 0) for step, (a, b) in enumerate(zip(variances, variances[1:],
                                                                                      strict=False)))  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"objective": "m2", "bilevel_steps": 1}])
def test_cut_in_mid_cycle_and_resume_is_exact(options, run, tmp_path):
    options = {"encoder_updates": 3, **options}
    run.fit(tmp_path / "whole", model=run.model(ScoreMatching, **options), max_steps=8)
    run.fit(tmp_path / "cut", model=run.model(ScoreMatching, **options), max_steps=4)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert len(torch.load(last, weights_only=True)["optimizer_states"]) == 2
    run.fit(tmp_path / "cut", model=run.model(ScoreMatching, **options), max_steps=8, ckpt_path=last)
    run.assert_same(tmp_path / "cut", tmp_path / "whole")


class PoisonTerm(pl.Callback):
    """Makes a term of one of the two losses NaN for one sample, in the given step."""

    def __init__(self, method, term, step):
        self.method, self.term, self.step = method, term, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.global_step != self.step:
            return
        loss = getattr(type(pl_module), self.method)

        def poisoned(x, noise):
            _, terms = loss(pl_module, x, noise)
            bad = torch.zeros(len(x))
            bad[1] = math.nan
            terms = {**terms, self.term: terms[self.term] + bad}
            return losses.LossOutput(sum(terms.values()).mean(), terms)

        setattr(pl_module, self.method, poisoned)


@pytest.mark.parametrize(
    ("method", "term", "options"),
    [
        ("loss", "score", {}),
        ("inference_loss", "kl", {}),
        ("inference_loss", "posterior", {"divergence": "fisher"}),
        ("bilevel_loss", "mean_score", {"objective": "m2", "bilevel_steps": 1}),
    ],
)
def test_nan_stops_the_run_with_step_and_term(method, term, options, run, tmp_path):
    with pytest.raises(NonFiniteLossError) as error:
        run.fit(tmp_path, [PoisonTerm(method, term, 6)], model=run.model(ScoreMatching, **options))
    assert str(error.value) == f"training step 6, epoch 1, batch 1: the term '{term}' is NaN for 1 of 256 samples"
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_rows_between_updates_of_the_decoder(run, tmp_path):
    """Rows of steps that leave the decoder alone have its loss all the same."""
    model = run.model(ScoreMatching, encoder_updates=4)
    run.fit(tmp_path, model=model, max_steps=6, log_every_n_steps=3)
    rows = [row for row in run.rows(tmp_path) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [0, 3]
    assert float(rows[0]["train/loss"]) == pytest.approx(float(rows[0]["train/score"]), rel=1e-5)


def test_bad_arguments_are_named(run):
    def build(**options):
        return ScoreMatching(nn.Identity(), nn.Identity(), 3, **options)

    for name in ("encoder_updates", "bilevel_steps"):
        with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, received 0"):
            build(**{name: 0})
    with pytest.raises(ValueError, match="objective: expected one of 'm1', 'm2', 'm3', 'elbo', 'joint_fd', received"):
        build(objective="m4")
    with pytest.raises(ValueError, match="divergence: expected one of 'kl', 'fisher', received 'js'"):
        build(divergence="js")
    with pytest.raises(ValueError, match="reparametrize: expected None or True with divergence='kl', received False"):
        build(reparametrize=False)
    for objective in ("elbo", "joint_fd"):
        with pytest.raises(ValueError, match=f"bilevel_steps: expected None with objective='{objective}', received 2"):
            build(objective=objective, bilevel_steps=2)
    with pytest.raises(ValueError, match="num_samples: expected an int >= 2 with unbiased=True, received 1"):
        build(objective="m2", unbiased=True, num_samples=1)
    for name in ("bilevel_step_size", "encoder_learning_rate"):
        with pytest.raises(ValueError, match=f"{name}: expected a number > 0, received 0"):
            build(**{name: 0})


def test_processes_train_as_one(tmp_path):
    """Two processes (gloo) equal Algorithm 1 on the average of both shards' gradients."""

    def build():
        torch.manual_seed(0)
        return ScoreMatching(
            nets.MLPEncoder(64, [8], 3, "tanh"), nets.MLPDecoder(3, [8], (1, 8, 8), activation="tanh"), 3,
            num_samples=2, encoder_updates=2, learning_rate=1e-2,
        )  # fmt: skip

    model, data, steps, batch_size = build(), DigitsDataModule(32), 4, 32
    pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork_find_unused_parameters_true", max_steps=steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    ).fit(model, data)  # fmt: skip

    twin = build()
    data.setup()
    encoder_optimizer, decoder_optimizer = twin.configure_optimizers()
    orders = [torch.randperm(1297, generator=seeds.generator(seeds.ORDER, 0, 0))[rank::2] for rank in range(2)]

    def update(optimizer, loss, step, *stream):
        twin.zero_grad()
        for rank, order in enumerate(orders):
            x, _ = data.train_set[order[step * batch_size : (step + 1) * batch_size]]
            generator = seeds.generator(seeds.TRAIN, 0, step, step, rank, *stream)
            (loss(x, twin.draw_noise(x, generator)).loss / 2).backward()
        optimizer.step()

    for step in range(steps):
        update(encoder_optimizer, twin.inference_loss, step, 2)
        if step % 2:
            update(decoder_optimizer, twin.loss, step)
    for (name, got), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")
