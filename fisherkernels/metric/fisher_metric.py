"""The Fisher metric of a decoder as posterior precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fisherkernels import ops
from fisherkernels.checks import check_choice, check_count, check_number, check_same, type_name
from fisherkernels.linearize import linearize_for_stacks
from fisherkernels.metric import cost_model
from fisherkernels.metric.arguments import check_mean, check_stack
from fisherkernels.metric.conjugate_gradients import Solution, conjugate_gradients
from fisherkernels.metric.direct import cholesky_factor, differentiable_solve, factor_and_solve
from fisherkernels.metric.implicit import ImplicitSolution, LogDeterminant
from fisherkernels.metric.lanczos import lanczos_logdet
from fisherkernels.metric.noise import as_noise_pair, as_noise_variance
from fisherkernels.metric.operator import MetricOperator
from fisherkernels.metric.outcome import SolveInfo, check_factor, check_solution, solve_info
from fisherkernels.networks import run_network
from fisherkernels.transforms import inside_transform

METHODS = ("auto", "cg", "cholesky")
GRADIENTS = ("full", "mean")
MAX_ITER = 100
MAX_ITER_COMPILED = 16  # all of them are in the graph
LARGEST_EXACT = 256  # d above which logdet("auto") is estimated
PULLED_AT_ONCE = 128  # cotangents from which on a second stack no longer makes products faster
COMPILED_CHOLESKY = 64  # d up to which a compiled "auto" is direct


class FisherMetric:
    r"""The metric :math:`M = J^T N^{-1} J + I` of a decoder f at ``mean``, per sample, as a linear operator.

    :math:`J = \partial f/\partial z` at ``mean``, N = diag(noise_variance). For the model
    :math:`x = f(z) + n`, :math:`n \sim N(0, N)`, :math:`z \sim N(0, I)`, M is the Fisher information of the likelihood
    plus the prior's precision: the precision of the Gaussian approximation of the posterior around ``mean``, exact for
    a linear decoder. Its inverse is the covariance, its eigenvectors are the principal directions of uncertainty.

    Solves and samples are differentiable once by plain ``backward()``, implicitly: the gradient of a solve is one more
    solve, never a derivative of its iterations. A metric is a snapshot: make a new one after an optimiser step, which
    changes weights in place. Two ``backward()`` calls on results of one metric share its graph and need
    ``retain_graph=True`` at the first. Inside the transforms of torch.func M is formed and factorised, whatever the
    method, and the transforms differentiate that.

    Args:
        decoder: any module that :func:`fk.linearize` takes, ``[N, d] -> [N, ...]``; the value is flattened to D.
        mean: ``[N, d]``, float32 or float64.
        noise_variance: N's diagonal, squared units of the data: a float, a 0-d tensor, ``[D]`` or the value's trailing
            shape, or per sample ``[N, 1]``, ``[N, D]`` or the value's shape. May require grad.
        batch_statistics: ``"frozen"`` treats the statistics of train-mode BatchNorm as constants. With ``"batch"`` such
            a decoder is refused: its Jacobian couples the samples, and there is no M per sample.
        memory_budget: bytes that an explicit Jacobian may take; above it the direct route works in parts.

    Attributes:
        value: f(mean), in the graph.
        linearization: the :class:`~fisherkernels.Linearization` below.

    Raises:
        TypeError: no module, half precision, mixed dtypes, a DDP or FSDP wrapper.
        ValueError: wrong shapes, noise_variance <= 0 (tensors: eager mode on the CPU only), train-mode BatchNorm.

    Source: Zacherl, Frank and Enßlin, "Probabilistic Autoencoder Using Fisher Information", Entropy 2021, eq. 14-20.

    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    >>> metric = FisherMetric(decoder, torch.zeros(3, 2), 0.1)
    >>> b = torch.ones(3, 2)
    >>> torch.allclose(metric.matvec(metric.solve(b)), b, atol=1e-4)
    True
    >>> metric.sample(4).shape
    torch.Size([4, 3, 2])
    """

    def __init__(
        self,
        decoder: nn.Module,
        mean: Tensor,
        noise_variance: Tensor | float,
        *,
        batch_statistics: str = "batch",
        memory_budget: int = 2**30,
    ):
        check_mean(mean)
        check_count("memory_budget", memory_budget)
        self.linearization = run_network(
            "decoder", lambda net, z: linearize_for_stacks(net, z, batch_statistics=batch_statistics), decoder, mean
        )
        value = self.linearization.value
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != mean.shape[0]:
            received = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type_name(value)
            raise ValueError(
                f"decoder: expected an output [{mean.shape[0]}, ...], one item per row of mean, received {received}"
            )
        check_same("decoder's output", value, "mean", mean)
        if self.linearization.coupled:
            raise ValueError(
                f"decoder: {', '.join(self.linearization.coupled)} in train mode couples the samples of a batch, so "
                'that there is no metric per sample; call decoder.eval() or pass batch_statistics="frozen"'
            )
        self.mean = mean
        self._decoder = decoder
        self.noise_variance = as_noise_variance(noise_variance, value)  # [1 or N, 1 or D]
        self.memory_budget = memory_budget
        self._operator = MetricOperator(self.linearization, mean, 1 / self.noise_variance)
        self._factor: Tensor | None = None  # lower Cholesky factor [N, d, d]
        self._last: str = ""

    @property
    def value(self) -> Tensor:
        return self.linearization.value

    def matvec(self, v: Tensor) -> Tensor:
        """M v for v ``[N, d]`` or a stack ``[K, N, d]``, in the graph of decoder, mean and noise variance.

        Raises:
            TypeError, ValueError: v is of another dtype, device or shape.
        """
        check_stack("v", v, self.mean)
        return self._operator.matvec(v)

    def dense(self) -> Tensor:
        """M ``[N, d, d]``, in the graph."""
        return self._operator.dense(self.memory_budget)

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``[N, d]``, ascending, and eigenvectors ``[N, d, d]`` in columns.

        Column k is a principal direction of the posterior with standard deviation ``eigenvalues[:, k] ** -0.5``.
        """
        return torch.linalg.eigh(self.dense())

    def solve(
        self,
        b: Tensor,
        *,
        method: str = "auto",
        tol: float = 1e-5,
        max_iter: int | None = None,
        gradient: str = "full",
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, SolveInfo]:
        r"""x = M⁻¹ b, for b ``[N, d]`` or a stack ``[K, N, d]``.

        Args:
            b: right-hand sides.
            method: ``"cholesky"`` forms J, its Gram matrix and a Cholesky factor, which later calls reuse; of a network
                of Linear and ReLU layers on a CPU only the active units enter, and J is never formed. ``"cg"`` needs
                products with M only: each sample takes conjugate gradient steps until
                :math:`\|b - M x\| \le tol \|b\|`. ``"auto"`` takes the one that is faster here, by a cost model whose
                constants are measured on this machine (``repr`` shows its prediction); under torch.compile it is
                "cholesky" up to d = 64 and for ReLU networks on a CPU.
            tol, max_iter: of "cg". max_iter is min(d + 10, 100) by default. Under torch.compile that many masked
                iterations are in the graph, by default min(d, 16).
            gradient: ``"full"`` differentiates M too, ``"mean"`` lets only b carry gradient.
            return_info: also return a :class:`SolveInfo`, which costs one more product with M.

        Raises:
            ValueError: wrong shape, unknown option, tol outside (0, 1), max_iter < 1.
            FloatingPointError: a NaN, an infinity, or negative curvature, naming the sample (eager mode; the direct
                route looks on the CPU only).

        Warns:
            RuntimeWarning: samples that did not reach tol within max_iter iterations, with their number.
        """
        single = check_stack("b", b, self.mean)
        rhs = b[None] if single else b  # [K, N, d]
        method, max_iter = self._options(method, tol, max_iter, gradient, rhs.shape[0])
        transformed = self._transformed(rhs, gradient) if inside_transform() else None
        with torch.no_grad():
            fixed = rhs.detach()
            if transformed is not None:
                x, solution = transformed.detach(), None
            elif method == "cholesky":
                x, solution = self._direct(fixed, None), None
            else:
                solution = self._iterate(fixed, torch.zeros_like(fixed), fixed, tol, max_iter)
                x = solution.x.view(rhs.shape)
            info = solve_info(method, fixed, self._operator.matvec(x), solution) if return_info else None
        x = self._attach(x, rhs, None, method, tol, max_iter, gradient) if transformed is None else transformed
        x = x[0] if single else x
        if return_info and single:
            info = SolveInfo(info.method, *(part[0] for part in info[1:]))
        return (x, info) if return_info else x

    def sample(
        self,
        num_samples: int = 1,
        *,
        noise: tuple[Tensor, Tensor] | None = None,
        mirrored: bool = False,
        method: str = "auto",
        tol: float = 1e-5,
        max_iter: int | None = None,
        gradient: str = "full",
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, SolveInfo]:
        r"""Posterior samples z ``[S, N, d]`` with covariance M⁻¹ around ``mean``.

        :math:`z = \mu + M^{-1}(J^T n + \eta)`, :math:`n \sim N(0, N^{-1})`, :math:`\eta \sim N(0, I)`: the right-hand
        side has covariance M, so that the sample has M⁻¹.

        Args:
            num_samples: S.
            noise: standard normal draws ``([S, N, D], [S, N, d])``, data side and latent side; drawn from the global
                generator when None.
            mirrored: S is even and the second half of the samples mirrors the first at ``mean``; noise then holds S/2.
            method, tol, max_iter, return_info: as for :meth:`solve`. "cg" starts at η, the prior's part.
            gradient: ``"full"`` differentiates through M and J, ``"mean"`` through ``mean`` alone.

        Raises:
            TypeError, ValueError, FloatingPointError: as :meth:`solve`; noise of other shapes; an odd S with mirrored.

        Source: Zacherl, Frank and Enßlin, Entropy 2021, eq. 26-31.
        """
        check_count("num_samples", num_samples)
        if mirrored and num_samples % 2:
            raise ValueError(f"num_samples: expected an even number with mirrored=True, received {num_samples}")
        draws = num_samples // 2 if mirrored else num_samples
        op, rows = self._operator, self.mean.shape[0]
        data, latent = as_noise_pair(noise, draws, rows, op.columns, self.mean)
        method, max_iter = self._options(method, tol, max_iter, gradient, draws)
        weighted = data * op.precision.sqrt()  # n, [S, N, D]
        transformed = None
        if inside_transform():
            transformed = self._transformed(latent + op.pull(weighted), gradient)
            transformed = transformed if gradient == "full" else transformed.detach()
        with torch.no_grad():
            fixed = weighted.detach()
            rhs, solution = None, None
            if transformed is not None:
                offset = transformed.detach()
            elif method == "cholesky":
                offset = self._direct(latent, fixed)
            else:
                from_data, from_latent = self._pull_both(fixed, op.precision * op.push(latent))
                rhs = from_data + latent
                solution = self._iterate(rhs, latent, from_data - from_latent, tol, max_iter)
                offset = solution.x.view(latent.shape)
            if return_info:
                rhs = op.pull(fixed) + latent if rhs is None else rhs
            info = solve_info(method, rhs, op.matvec(offset), solution) if return_info else None
        if transformed is None:
            offset = self._attach(offset, latent, weighted, method, tol, max_iter, gradient)
        else:
            offset = transformed
        z = self.mean + (torch.cat([offset, -offset]) if mirrored else offset)
        return (z, info) if return_info else z

    def logdet(
        self, method: str = "auto", *, num_probes: int = 8, num_steps: int = 16, noise: Tensor | None = None
    ) -> Tensor:
        """ln|M| ``[N]``, in the graph.

        Args:
            method: ``"exact"`` from the Cholesky factor; ``"lanczos"`` estimates it without bias in the probes by
                stochastic Lanczos quadrature, from products with M alone; ``"auto"`` is exact up to d = 256.
            num_probes: random sign vectors per sample; the standard error falls as num_probes^-1/2.
            num_steps: Lanczos steps, one product with M each.
            noise: the probes ``[num_probes, N, d]``, of mean 0 and covariance I; drawn when None.

        Raises:
            TypeError, ValueError: an unknown method, a number of probes or steps below 1, noise of another shape.
            FloatingPointError: "exact" met NaN or infinity, naming the sample (eager mode on the CPU).

        Source: Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 2017 (the quadrature).
        """
        check_choice("method", method, ("auto", "exact", "lanczos"))
        check_count("num_probes", num_probes)
        check_count("num_steps", num_steps)
        rows, width = self.mean.shape
        if method == "exact" or (method == "auto" and width <= LARGEST_EXACT):
            return self._exact_logdet()
        if noise is None:
            noise = torch.randint(0, 2, (num_probes, rows, width), device=self.mean.device).to(self.mean.dtype) * 2 - 1
        else:
            check_stack("noise", noise, self.mean)
        op = self._operator
        with torch.no_grad():
            value, inverse = (part.detach() for part in lanczos_logdet(op.matvec, noise, num_steps))
        if not self._in_graph():
            return value
        derivative = (inverse * op.matvec(noise)).sum(2).mean(0)  # v^T M^-1 dM v
        return value + (derivative - derivative.detach())

    def __repr__(self) -> str:
        rows, width = self.mean.shape
        parts = [f"N={rows}, d={width}, D={self._operator.columns}", str(self.mean.dtype).removeprefix("torch.")]
        if rows and width and not torch.compiler.is_compiling():
            times = self._predict(1, 1e-5)
            listed = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items())
            parts.append(f"auto: {self._choose(1, 1e-5)} for one right-hand side (predicted {listed})")
        if self._last:
            parts.append(f"last: {self._last}")
        return f"FisherMetric({', '.join(parts)})"

    def _options(self, method, tol, max_iter, gradient, num_rhs: int) -> tuple[str, int]:
        check_choice("method", method, METHODS)
        check_choice("gradient", gradient, GRADIENTS)
        check_number("tol", tol, positive=True)
        if not tol < 1:
            raise ValueError(f"tol: expected a relative residual in (0, 1), received {tol}")
        width, compiling = self.mean.shape[1], torch.compiler.is_compiling()
        if max_iter is None:
            max_iter = max(1, min(width, MAX_ITER_COMPILED) if compiling else min(width + 10, MAX_ITER))
        check_count("max_iter", max_iter)
        if inside_transform():
            method = "cholesky"
        elif method == "auto":
            method = self._choose(num_rhs, tol)
        self._last = method
        return method, max_iter

    def _choose(self, num_rhs: int, tol: float) -> str:
        rows, width = self.mean.shape
        if torch.compiler.is_compiling():
            direct = width <= COMPILED_CHOLESKY or self._operator.chain is not None
            return "cholesky" if direct else "cg"
        if self._factor is not None or rows * width * num_rhs == 0:
            return "cholesky"
        times = self._predict(num_rhs, tol)
        explicit = rows * width * self._operator.columns * self.mean.element_size()
        if explicit > self.memory_budget and self._operator.last is None:
            return "cg"
        return min(times, key=times.get)

    def _predict(self, num_rhs: int, tol: float) -> dict[str, float]:
        rows, width = self.mean.shape
        work = self.linearization.work()
        problem = cost_model.Problem(
            rows,
            width,
            self._operator.columns,
            num_rhs,
            work.flops_per_tangent,
            work.bytes_per_tangent,
            work.steps,
            self._operator.active_work(),
        )
        iterations = cost_model.expected_iterations(self._decoder, width, tol)
        return cost_model.predict(problem, iterations, self.mean.device, self.mean.dtype)

    def _in_graph(self, *others: Tensor | None) -> bool:
        if inside_transform():
            return True
        tensors = (self.value, self.mean, self.noise_variance, *others)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

    def _direct(self, rhs: Tensor, data: Tensor | None) -> Tensor:
        """M^-1 (rhs + J^T data) by the Cholesky factor, which is kept."""
        if self._factor is None:
            x, factor = factor_and_solve(self._operator, rhs, data, self.memory_budget)
            check_factor(factor)
            self._factor = factor
            return x
        return ops.factor_solve(self._factor, rhs if data is None else rhs + self._operator.pull(data))

    def _pull_both(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """J^T a and J^T b: at once where few rows make slow matrix products, else one by one in half the memory."""
        if a.shape[0] * a.shape[1] >= PULLED_AT_ONCE:
            return self._operator.pull(a), self._operator.pull(b)
        first, second = self._operator.pull(torch.cat([a, b])).chunk(2)
        return first, second

    def _iterate(self, rhs: Tensor, start: Tensor, residual: Tensor, tol: float, max_iter: int) -> Solution:
        """Conjugate gradients over all K N systems; rhs, start, residual [K, N, d]."""
        op = self._operator
        width, shape = rhs.shape[2], rhs.shape
        iterations = max_iter
        if not torch.compiler.is_compiling():
            iterations = min(max_iter, round(cost_model.expected_iterations(self._decoder, width, tol)))
        product = op.reduced_matvec if op.reduction_saves(shape[0] * iterations) else op.matvec

        def matvec(v: Tensor) -> Tensor:  # [K N, d]
            return product(v.view(shape)).reshape(v.shape)

        with torch.no_grad():
            flat = (t.reshape(shape[0] * shape[1], width) for t in (rhs, start, residual))
            solution = conjugate_gradients(matvec, *flat, tol=tol, max_iter=max_iter)
        if not torch.compiler.is_compiling():
            check_solution(solution, shape[1], tol, max_iter)
            if solution.iterations.numel():
                cost_model.remember(self._decoder, max(1, int(solution.iterations.max())), tol)
        return solution

    def _transformed(self, rhs: Tensor, gradient: str) -> Tensor:
        """M^-1 rhs [K, N, d] inside a transform of torch.func, which sees operations rather than graphs."""
        metric = self.dense()
        return differentiable_solve(metric if gradient == "full" else metric.detach(), rhs)

    def _attach(
        self, x: Tensor, rhs: Tensor, data: Tensor | None, method: str, tol: float, max_iter: int, gradient: str
    ) -> Tensor:
        """x = M^-1 (rhs + J^T data) in the graph: of rhs alone, or of everything that its residual depends on."""
        full = gradient == "full"
        if not (self._in_graph(rhs, data) if full else torch.is_grad_enabled() and rhs.requires_grad):
            return x
        op, residual = self._operator, rhs
        if full:
            from_data = -op.precision * op.push(x)
            residual = rhs - x + op.pull(from_data if data is None else data + from_data)

        def solve(cotangent: Tensor) -> Tensor:
            with torch.no_grad():
                if method == "cholesky":
                    return self._direct(cotangent.contiguous(), None)
                zeros = torch.zeros_like(cotangent)
                return self._iterate(cotangent, zeros, cotangent, tol, max_iter).x.view(cotangent.shape)

        return ImplicitSolution.apply(residual, x, solve)

    def _exact_logdet(self) -> Tensor:
        rows, width = self.mean.shape
        if inside_transform():
            return 2 * torch.linalg.cholesky(self.dense()).diagonal(dim1=1, dim2=2).log().sum(1)
        metric = self.dense() if self._in_graph() else None
        with torch.no_grad():
            if self._factor is None and metric is None:
                self._direct(self.mean.new_empty(0, rows, width), None)
            elif self._factor is None:
                factor = cholesky_factor(metric.detach())
                check_factor(factor)
                self._factor = factor
        if metric is None:
            return 2 * self._factor.diagonal(dim1=1, dim2=2).log().sum(1)

        def inverse() -> Tensor:
            basis = torch.eye(width, dtype=metric.dtype, device=metric.device)
            columns = ops.factor_solve(self._factor, basis[:, None].expand(-1, rows, -1).contiguous())  # [d, N, d]
            return columns.permute(1, 2, 0)

        return LogDeterminant.apply(metric, self._factor, inverse)
