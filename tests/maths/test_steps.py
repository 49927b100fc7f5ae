"""The stochastic steps against the exact recursions of the Gaussian world."""

import math

import pytest
import torch

from flow_ttrl.sampling import shifted_sigmas
from flow_ttrl.sampling.steps import (
    ancestral_std,
    cps_step,
    largest_eta,
    log_prob,
    sde_step,
)
from flow_ttrl.world.gaussian import GaussianWorld

SAMPLES = 20_000
SIGMAS = 5.0  # statistical tolerance of 2 x 20 modes x 10 levels


def euler(x, v, s, s_next):
    return x + v * (s_next - s)


def velocity(world, x, s):
    return world.velocity(x, s, torch.arange(len(x)))


def sde_formula(s, s_next, eta, first):
    """Coefficients of x, of v and the std, as METHOD.md section 2 writes them."""
    h = s - s_next
    a = eta * math.sqrt(s / (1 - (first if s == 1 else s)))
    on_v = -(1 + a**2 * (1 - s) / (2 * s)) * h
    return 1 - a**2 * h / (2 * s), on_v, a * math.sqrt(h)


def cps_std(s_next, eta):
    return s_next * math.sin(eta * math.pi / 2)


def cps_formula(s, s_next, eta):
    """Mean (1 - s') x0 + sqrt(s'^2 - std^2) e, written out in x and v."""
    std = cps_std(s_next, eta)
    kept = math.sqrt(s_next**2 - std**2)
    return (1 - s_next) + kept, -(1 - s_next) * s + kept * (1 - s), std


def recursions(steps, kind, eta):
    """(s, s', step, formula) of every stochastic step over a schedule."""
    sigmas = shifted_sigmas(steps).tolist()
    for s, s_next in zip(sigmas, sigmas[1:], strict=False):
        if kind == "sde":
            formula = sde_formula(s, s_next, eta, sigmas[1])
            yield s, s_next, sde_step(s, s_next, eta, sigmas[1]), formula
        elif s_next > 0:
            step = cps_step(s, s_next, cps_std(s_next, eta))
            yield s, s_next, step, cps_formula(s, s_next, eta)


def modes(x):
    return torch.fft.fft2(x, norm="ortho")


@pytest.mark.parametrize("kind, eta", [("sde", 0.7), ("sde", 1.0), ("cps", 0.5), ("cps", 0.9)])
def test_mean_and_variance_follow_the_exact_recursion(kind, eta):
    """Every step's samples against the recursion of each mode, computed without the library."""
    world, generator = GaussianWorld(4, 5, channels=1), torch.Generator().manual_seed(0)
    offset = torch.randn(1, 1, 4, 5, generator=generator)
    x = offset + torch.randn(SAMPLES, 1, 4, 5, generator=generator)
    mean, variance = modes(offset)[0, 0], torch.ones(4, 5)
    for s, s_next, step, (on_x, on_v, std) in recursions(10, kind, eta):
        noise = torch.randn(x.shape, generator=generator)
        x = step.mean(x, velocity(world, x, s)) + step.std * noise
        factor = on_x + on_v * world.slope(s)
        mean, variance = factor * mean, factor**2 * variance + std**2
        found = modes(x)[:, 0]
        error = (found.mean(0) - mean).abs() / (variance / SAMPLES).sqrt()
        assert error.max() < SIGMAS, f"mean at level {s_next}"
        spread = (found - found.mean(0)).abs().square().mean(0)
        # the uncertainty of a real mode's variance; a complex one's is smaller
        error = (spread / variance - 1).abs() / math.sqrt(2 / SAMPLES)
        assert error.max() < SIGMAS, f"variance at level {s_next}"


def marginal_error(steps, eta):
    """Largest relative error of a mode's variance, starting from the truth past the opening."""
    world = GaussianWorld(8, 11, channels=1)
    sigmas = shifted_sigmas(steps).tolist()
    levels = [s for s in sigmas if s < 0.9]
    variance, worst = world.variance(levels[0]), 0.0
    for s, s_next in zip(levels, levels[1:], strict=False):
        step = sde_step(s, s_next, eta, sigmas[1])
        variance = (step.on_x + step.on_v * world.slope(s)) ** 2 * variance + step.std**2
        worst = max(worst, (variance / world.variance(s_next) - 1).abs().max().item())
    return worst


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_sde_marginals_converge_to_the_truth(eta):
    errors = [marginal_error(steps, eta) for steps in (20, 40, 80, 320)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5 * errors[0]
    assert errors[3] < 0.25 * errors[1]


def test_sde_without_noise_is_euler():
    x, v = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    step = sde_step(0.8, 0.7, 1e-9, 0.9)
    torch.testing.assert_close(step.mean(x, v), euler(x, v, 0.8, 0.7))


def test_sde_spreads_the_opening_step():
    """The step from s = 1 is only first-order right: 6% too much variance at eta 0.7, T = 40."""
    world = GaussianWorld(16, channels=1)
    first = shifted_sigmas(40)[1].item()
    for eta, least, most in [(0.7, 1.0, 1.1), (1.5, 2.0, 2.6)]:
        step = sde_step(1.0, first, eta, first)
        variance = (step.on_x + step.on_v * world.slope(1.0)) ** 2 + step.std**2
        assert least < (variance / world.variance(first)).mean() < most


def test_sde_takes_a_level_just_above_one_for_one():
    """Rounding leaves some schedules' first level there."""
    exact, rounded = (sde_step(s, 0.97, 0.7, 0.97) for s in (1.0, 1.0000001))
    for name in ("on_x", "on_v", "std"):
        assert getattr(rounded, name) == pytest.approx(getattr(exact, name), rel=1e-4)


@pytest.mark.parametrize("eta", [0.001, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps", [4, 20, 80])
def test_cps_is_euler_further_down_then_exact_noise(steps, eta):
    """Euler to level t, then the noise that leads from t back up to s', exactly."""
    for s, s_next, step, _ in recursions(steps, "cps", eta):
        kept = math.sqrt(max(s_next**2 - step.std**2, 0))
        t = kept / (1 - s_next + kept)
        r = (1 - s_next) / (1 - t)
        assert r * t == pytest.approx(kept)
        assert step.on_x == pytest.approx(r)
        assert step.on_v == pytest.approx(r * (t - s))
        assert step.std**2 == pytest.approx(s_next**2 - (r * t) ** 2)
        assert step.on_x > 0


def test_cps_keeps_the_coefficients():
    """A noisy clean latent ends at level s' with its own x0 and noise of variance s'^2."""
    x0, e, noise = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(2))
    for s, s_next, step, _ in recursions(6, "cps", 0.6):
        x = step.mean((1 - s) * x0 + s * e, e - x0) + step.std * noise
        rest = x - (1 - s_next) * x0
        assert rest.var().item() == pytest.approx(s_next**2, rel=0.03)


def test_cps_at_its_own_level_renews_the_noise():
    """From s to s: the data estimate stays, and of the noise as much as was asked for goes."""
    x0, e, noise = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(2))
    s, share = 0.6, 0.8
    step = cps_step(s, s, share * s)
    x = step.mean((1 - s) * x0 + s * e, e - x0) + step.std * noise
    left = (x - (1 - s) * x0) / s
    assert left.var().item() == pytest.approx(1, rel=0.03)
    assert (left * e).mean().item() == pytest.approx(math.sqrt(1 - share**2), abs=0.02)


@pytest.mark.parametrize("steps", [8, 20, 40])
def test_largest_eta_leaves_half_of_x(steps):
    sigmas = shifted_sigmas(steps).tolist()
    for s, s_next in zip(sigmas, sigmas[1:], strict=False):
        eta = largest_eta(s, s_next, sigmas[1])
        assert sde_step(s, s_next, eta, sigmas[1]).on_x == pytest.approx(0.5)
        assert sde_step(s, s_next, 0.9 * eta, sigmas[1]).on_x > 0.5


@pytest.mark.parametrize("s, s_next", [(0.97, 0.9), (0.9, 0.5), (0.5, 0.45), (0.2, 0.01)])
def test_ancestral_noise_is_the_posteriors(s, s_next):
    """Of x_{s'} given x_s and x0, on the variance-preserving path of the same two levels.

    There x_s = a x_{s'} + noise of variance 1 - a^2, with a the ratio of the signals' roots; the
    three are jointly Gaussian, and conditioning is left to linear algebra.
    """
    signals = [(1 - level) / math.hypot(1 - level, level) for level in (s, s_next)]
    ratio = signals[0] / signals[1]
    noise_next = 1 - signals[1] ** 2  # the variance of x_{s'} given x0
    joint = torch.tensor(
        [[noise_next, ratio * noise_next], [ratio * noise_next, 1 - signals[0] ** 2]],
        dtype=torch.float64,
    )
    variance = joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1]
    own_path = math.hypot(1 - s_next, s_next)
    assert ancestral_std(s, s_next) == pytest.approx(own_path * math.sqrt(variance), rel=1e-6)


def test_ancestral_noise_from_pure_noise_is_all_fresh():
    for s in (1.0, 1.0000001):
        assert ancestral_std(s, 0.9) == 0.9
    assert ancestral_std(1 - 1e-7, 0.9) == pytest.approx(0.9, rel=1e-3)
    assert ancestral_std(0.5, 0.0) == 0


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 4, 4), (5, 2, 3, 4, 4)])
def test_log_prob_is_the_normal_density(shape):
    """Averaged over the elements, for latents of any rank."""
    generator = torch.Generator().manual_seed(3)
    sample, mean = torch.randn(2, *shape, generator=generator)
    step, dims = sde_step(0.8, 0.7, 0.7, 0.9), tuple(range(1, len(shape)))
    expected = torch.distributions.Normal(mean, step.std).log_prob(sample).mean(dims)
    torch.testing.assert_close(log_prob(step, sample, mean, dims), expected)


def test_the_worlds_velocity_is_exact():
    """v = E[e - x0 | x_s]: of many pairs, what is left over is uncorrelated with x_s."""
    world, s = GaussianWorld(6, 5, channels=1), 0.6
    x0, e = world.data(SAMPLES // 4), world.noise(SAMPLES // 4)
    x = (1 - s) * x0 + s * e
    left = modes(e - x0 - velocity(world, x, s))
    shared = (left * modes(x).conj()).mean((0, 1))
    spread = left.abs().square().mean((0, 1)).sqrt() * modes(x).abs().square().mean((0, 1)).sqrt()
    assert (shared.abs() / spread).max() < SIGMAS / math.sqrt(SAMPLES // 4)
