"""GLASS transitions in the exact world: the marginals they keep and the correlation they give."""

import pytest
import torch
from probes import keyed_noise, only_search

from flow_ttrl.sampling import Run
from flow_ttrl.sampling.strategies.glass import transition
from flow_ttrl.world.gaussian import BAND_EDGES, GaussianWorld

LEVELS = [(1.0, 0.9), (1.0, 0.75), (0.9, 0.7), (0.8, 0.75), (0.7, 0.4), (0.3, 0.1)]
SIZE = (40, 27)


def run_of(world, x):
    return Run(world, x, seed=0, settings=only_search("glass"))


def move(world, x, noise, s, s_next, correlation, steps):
    """One transition of ``x`` [B, ...] with inner ``noise`` [B, ...]."""
    run = run_of(world, x)
    v = world.velocity(x, s, torch.arange(len(x)))
    return transition(run, x[None], v[None], s, s_next, noise[None], correlation, steps)[0]


def responses(s, s_next, correlation, steps):
    """Every mode's response to the parent and to the noise: a transition is linear in both."""
    world = GaussianWorld(*SIZE, channels=1)
    impulse, nothing = torch.zeros(2, 1, 1, *SIZE)
    impulse[..., 0, 0] = 1
    return world, *(
        torch.fft.fft2(move(world, x, noise, s, s_next, correlation, steps))[0, 0].real
        for x, noise in ((impulse, nothing), (nothing, impulse))
    )


def errors(s, s_next, correlation, steps):
    """Relative errors, by band, of the variance, and of the covariance with the parent.

    Two points of one path whose noises are correlated by rho have the covariance
    (1 - s) (1 - s') P + rho s s'. From pure noise it is 0 whatever was asked for.
    """
    world, parent, fresh = responses(s, s_next, correlation, steps)
    variance = parent**2 * world.variance(s) + fresh**2
    rho = correlation if s < 1 else 0.0
    shared = (1 - s) * (1 - s_next) * world.spectrum + rho * s * s_next
    wanted = world.variance(s_next)
    covariance = parent * world.variance(s)
    return (
        by_band(world, (variance - wanted) / wanted),
        by_band(world, (covariance - shared) / (wanted * world.variance(s)).sqrt()),
    )


def by_band(world, error):
    """The largest of the bands' mean errors."""
    bands = torch.bucketize(world.radius, torch.tensor(BAND_EDGES))
    return max(error[bands == band].mean().abs().item() for band in range(len(BAND_EDGES) + 1))


@pytest.mark.parametrize("s, s_next", LEVELS)
@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_variance_and_correlation_are_right_in_every_band(s, s_next, correlation):
    variance, covariance = errors(s, s_next, correlation, 16)
    assert variance < 0.06
    assert covariance < 1e-5


@pytest.mark.parametrize("s, s_next", LEVELS)
@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_inner_steps_converge_to_the_truth(s, s_next, correlation):
    """First order: four times the steps leave about a quarter of the error in the variance.

    The covariance with the parent is exact whatever their number.
    """
    few, more, many = (errors(s, s_next, correlation, steps) for steps in (4, 16, 64))
    assert many[0] < 0.4 * more[0] < 0.4 * 0.5 * few[0]
    assert max(few[1], more[1], many[1]) < 1e-5


@pytest.mark.parametrize("s, s_next", [(1.0, 0.6), (0.8, 0.5)])
def test_samples_are_as_energetic_as_the_level_they_come_to(s, s_next):
    """Of many parents that are themselves samples of their level, in every octave."""
    world = GaussianWorld(32)
    parents = (1 - s) * world.data(40) + s * world.noise(40)
    noise = keyed_noise(5, parents).normal("test", [0], parents)[0]
    found = move(world, parents, noise, s, s_next, 0.4, 32)
    whitened = world.filtered(found, (world.spectrum / world.variance(s_next)).sqrt())
    energies = world.band_energies(whitened).mean(0)
    torch.testing.assert_close(energies, torch.ones(4), atol=0.06, rtol=0)


def test_a_transition_takes_a_call_for_every_inner_step_but_the_parents_own():
    world = GaussianWorld(8)
    for s, calls in ((1.0, 4), (0.8, 3)):
        run = run_of(world, world.noise(2))
        x = world.noise(2)[None]
        transition(run, x, x, s, 0.5, run.draw(0, 1), 0.4, 4)
        assert run.cost.model_calls == 2 * calls
