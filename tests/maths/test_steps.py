"""The stochastic steps against the exact recursions of the Gaussian world."""

import math

import pytest
import torch
from gaussian_world import GaussianWorld

from flow_ttrl.sampling import sample, shifted_sigmas
from flow_ttrl.sampling.bands import band_sizes, octaves
from flow_ttrl.sampling.steps import (
    cps_step,
    largest_eta,
    log_prob,
    matched_step,
    midpoint_step,
    sde_step,
)

SAMPLES = 20_000
SIGMAS = 5.0  # statistical tolerance of 2 x 16 modes x 10 levels


def euler(x, v, s, s_next):
    return x + v * (s_next - s)


def sde_formula(s, s_next, eta, first):
    """Coefficients of x, of v and the std, as METHOD.md section 1 writes them."""
    h = s - s_next
    a = eta * math.sqrt(s / (1 - (first if s == 1 else s)))
    on_v = -(1 + a**2 * (1 - s) / (2 * s)) * h
    return 1 - a**2 * h / (2 * s), on_v, a * math.sqrt(h)


def cps_formula(s, s_next, eta):
    """Mean (1 - s') x0 + sqrt(s'^2 - std^2) e, written out in x and v."""
    std = s_next * math.sin(eta * math.pi / 2)
    kept = math.sqrt(s_next**2 - std**2)
    return (1 - s_next) + kept, -(1 - s_next) * s + kept * (1 - s), std


def recursions(steps, kind, eta):
    """(s, s', step, formula) of every stochastic step over a schedule."""
    sigmas = shifted_sigmas(steps).tolist()
    for s, s_next in zip(sigmas, sigmas[1:], strict=False):
        if kind == "sde":
            yield (
                s,
                s_next,
                sde_step(s, s_next, eta, sigmas[1]),
                sde_formula(s, s_next, eta, sigmas[1]),
            )
        elif s_next > 0:
            yield s, s_next, cps_step(s, s_next, eta), cps_formula(s, s_next, eta)


def modes(x):
    return torch.fft.fft2(x, norm="ortho")


@pytest.mark.parametrize("kind, eta", [("sde", 0.7), ("sde", 1.0), ("cps", 0.5), ("cps", 0.9)])
def test_mean_and_variance_follow_the_exact_recursion(kind, eta):
    """Every step's samples against the recursion of each mode, computed without the library."""
    world, generator = GaussianWorld(4, channels=1), torch.Generator().manual_seed(0)
    offset = torch.randn(1, 1, 4, 4, generator=generator)
    x = offset + torch.randn(SAMPLES, 1, 4, 4, generator=generator)
    mean, variance = modes(offset)[0, 0], torch.ones(4, 4)
    for s, s_next, step, (on_x, on_v, std) in recursions(10, kind, eta):
        noise = torch.randn(x.shape, generator=generator)
        x = step.mean(x, world.velocity(x, s)) + step.std * noise
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
    world = GaussianWorld(8, channels=1)
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
        on_x, on_v, std = sde_formula(1.0, first, eta, first)
        variance = (on_x + on_v * world.slope(1.0)) ** 2 + std**2
        assert least < (variance / world.variance(first)).mean() < most


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


@pytest.mark.parametrize("steps", [8, 20, 40])
def test_largest_eta_leaves_half_of_x(steps):
    sigmas = shifted_sigmas(steps).tolist()
    for s, s_next in zip(sigmas, sigmas[1:], strict=False):
        eta = largest_eta(s, s_next, sigmas[1])
        assert sde_step(s, s_next, eta, sigmas[1]).on_x == pytest.approx(0.5)
        assert sde_step(s, s_next, 0.9 * eta, sigmas[1]).on_x > 0.5


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 4, 4), (5, 2, 3, 4, 4)])
def test_log_prob_is_the_normal_density(shape):
    """Averaged over the elements, for latents of any rank."""
    generator = torch.Generator().manual_seed(3)
    sample, mean = torch.randn(2, *shape, generator=generator)
    step, dims = sde_step(0.8, 0.7, 0.7, 0.9), tuple(range(1, len(shape)))
    expected = torch.distributions.Normal(mean, step.std).log_prob(sample).mean(dims)
    torch.testing.assert_close(log_prob(step, sample, mean, dims), expected)


@pytest.mark.parametrize("s, s_next", [(1.0, 0.95), (0.8, 0.7), (0.4, 0.3), (0.1, 0.05)])
@pytest.mark.parametrize("eta", [0.2, 0.6, 1.0])
def test_midpoint_is_the_mean_of_sde_and_cps_at_equal_noise(s, s_next, eta):
    step, cps = midpoint_step(s, s_next, eta), cps_step(s, s_next, eta)
    first = s_next if s == 1 else 0.95
    odds = s / (1 - (first if s == 1 else s))
    sde = sde_step(s, s_next, cps.std / math.sqrt(odds * (s - s_next)), first)
    assert step.std == cps.std == pytest.approx(sde.std)
    assert step.on_x == pytest.approx((sde.on_x + cps.on_x) / 2)
    assert step.on_v == pytest.approx((sde.on_v + cps.on_v) / 2)


def test_midpoint_keeps_the_variance_better_than_either():
    """Searching noise at random over most of a run, in the exact world."""
    steps, errors = 20, {}
    for kind in ("sde", "cps", "midpoint"):
        world = GaussianWorld(32, steps=steps)
        x, sigmas = world.noise(24), world.sigmas.tolist()
        generator = torch.Generator().manual_seed(5)
        for i in range(steps):
            s, s_next = sigmas[i], sigmas[i + 1]
            v = world.velocity(x, s)
            if i >= steps - 2:
                x = euler(x, v, s, s_next)
                continue
            cps = cps_step(s, s_next, 0.4)
            odds = s / (1 - (sigmas[1] if s == 1 else s))
            eta = cps.std / math.sqrt(odds * (s - s_next))
            step = {
                "sde": sde_step(s, s_next, eta, sigmas[1]),
                "cps": cps,
                "midpoint": midpoint_step(s, s_next, 0.4),
            }[kind]
            x = step.mean(x, v) + step.std * torch.randn(x.shape, generator=generator)
        plain = world.band_energies(sample(world, world.noise(24))).mean(0)
        errors[kind] = (world.band_energies(x).mean(0) / plain - 1).abs().max()
    assert errors["midpoint"] < errors["sde"]
    assert errors["midpoint"] < errors["cps"]


@pytest.mark.parametrize("s, s_next", [(0.9, 0.85), (0.8, 0.7), (0.4, 0.3), (0.1, 0.05)])
@pytest.mark.parametrize("eta", [0.2, 0.4, 0.6])
def test_matched_step_has_the_energy_of_eulers_in_every_octave(s, s_next, eta):
    """Mean and noise at right angles: the search's candidates, of exactly typical noise."""
    world = GaussianWorld(32)
    x = (1 - s) * world.filtered(world.noise(3, seed=7), world.spectrum.sqrt()) + s * world.noise(3)
    v, step = world.velocity(x, s), matched_step(s, s_next, eta)
    assert step.std == cps_step(s, s_next, eta).std
    plain, mean = octaves(euler(x, v, s, s_next)), octaves(step.mean(x, v))
    for ours, eulers, size in zip(mean, plain, band_sizes(x), strict=True):
        energy = ours.square().sum((1, 2, 3)) + step.std**2 * size
        torch.testing.assert_close(energy, eulers.square().sum((1, 2, 3)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 36, 16), (2, 4, 3, 8, 8)])
def test_matched_step_keeps_the_data_estimate(shape):
    """And gives up noise only, in latents of any rank; without fresh noise it is Euler's."""
    x, v = torch.randn(2, *shape, generator=torch.Generator().manual_seed(4))
    quiet = matched_step(0.8, 0.7, 1e-6)
    torch.testing.assert_close(quiet.mean(x, v), euler(x, v, 0.8, 0.7), atol=1e-4, rtol=1e-4)
    rest = matched_step(0.8, 0.7, 0.5).mean(x, v) - 0.3 * (x - 0.8 * v)
    for part, noise in zip(octaves(rest), octaves(x + 0.2 * v), strict=True):
        dims = tuple(range(1, x.ndim))
        along = (part * noise).sum(dims, keepdim=True) / noise.square().sum(dims, keepdim=True)
        torch.testing.assert_close(part, along * noise, atol=1e-4, rtol=1e-3)
        assert (along < 0.7).all()


def test_matched_step_at_the_start_is_fresh_noise():
    """From pure noise at eta 1 nothing of the old noise stays: another start."""
    world = GaussianWorld(16)
    x, first = world.noise(4), world.sigmas[1].item()
    mean = matched_step(1.0, first, 1.0).mean(x, world.velocity(x, 1.0))
    assert mean.std() < 0.2 * x.std()
