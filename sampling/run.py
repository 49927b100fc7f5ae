"""What a strategy may touch: counted model calls, levels, look-aheads, totals and keyed noise.

Within a run latents are populations [P, B, ...]: P candidates of each of B batch items. Levels are
known by their number in the schedule, its equal neighbours taken as one (a step of length 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .flow import Cost, Flow, OwnSteps, Values
from .noise import KeyedNoise, item_keys
from .schedules import distinct_levels, spaced
from .settings import SearchSettings
from .state import Best, Judged, Look, State, per_item, take
from .steps import Multistep

Pull = Callable[[Tensor], Tensor]


class Run:
    """One search of a batch of B items.

    Args:
        noise: the host's own starting noise [B, ...].

    Attributes:
        calls: model calls that each item may spend, a backward counted as two.
        sigmas: distinct noise levels [T + 1]; levels: the same, with a clean end in any case.
        tail: calls that judging a finished latent takes: 1 where the schedule ends above 0.
        plain_calls: calls of a plain sample and its judging, what a budget is counted in.
        best: the best look-ahead so far, None before the first.
        judged: the look-aheads since the last step, in order.
        plain: the plain sample with its rewards, where the strategy has made it.
        samples: a population of finished samples with their rewards, where the strategy has any.
        noisy: 1 for items that the host adds noise to, 0 for those that are noisy already and have
            but one start; shaped [B, 1, ...] as ``noise``.
    """

    def __init__(self, flow: Flow, noise: Tensor, *, seed: int, settings: SearchSettings):
        self.flow, self.noise = flow, noise.float()
        self.items = len(noise)
        self.sigmas = distinct_levels(flow.sigmas.tolist())
        self.steps = len(self.sigmas) - 1
        self.tail = int(self.sigmas[-1] > 0)
        self.plain_calls = self.steps + self.tail
        self.levels = self.sigmas + [0.0] * self.tail
        self.calls = settings.calls(self.steps, self.tail)
        self.cost = Cost()
        self.best: Best | None = None
        self.judged: list[Judged] = []
        self.plain: State | None = None
        self.samples: State | None = None
        self._at_once = settings.micro_batch
        self._numbers = torch.arange(self.items, device=noise.device)
        self._seen: Values = {}
        self._random = KeyedNoise(seed, item_keys(self.noise))
        self.noisy = per_item(self.noise.flatten(1).any(1), self.noise).float()

    @property
    def calls_spent(self) -> float:
        """Calls so far, an item's share."""
        return self.cost.calls / self.items

    def parts(self, count: int) -> Iterator[range]:
        """The numbers of ``count`` candidates by those that run at once.

        What looks ahead from one part after another holds no more than a part.
        """
        size = self._at_once or max(1, count)
        return (range(first, min(first + size, count)) for first in range(0, count, size))

    # Noise and starts

    def draw(self, step: int | str, count: int, first: int = 0) -> Tensor:
        """White noise [count, B, ...], fixed by seed, item, ``step`` and candidate number."""
        return self._random.normal(step, range(first, first + count), self.noise)

    def uniform(self, step: int | str) -> Tensor:
        """One number in 0..1 for every item [B]."""
        return self._random.uniform(step).to(self.noise.device)

    def fresh_noise(self, count: int, first: int = 0) -> Tensor:
        """Starting noise [count, B, ...] from number ``first`` on; number 0 is the host's own."""
        if first:
            return self.draw("start", count, first) * self.noisy
        if count == 1:
            return self.noise[None]
        return torch.cat([self.noise[None], self.fresh_noise(count - 1, first=1)])

    def start(self, noise: Tensor) -> Tensor:
        """Latents at the first level from starting noise [P, B, ...]."""
        return self._each(self.flow.start, noise).float()

    def first_state(self) -> State:
        """The host's own start, before any step."""
        return State(self.start(self.noise[None]), 0)

    # Model calls

    def velocity(self, x: Tensor, sigma: float, active: Tensor | None = None) -> Tensor:
        """float32 velocity of ``x`` [P, B, ...]; zeros, uncounted, at the clean end.

        Args:
            active: items [B] whose rows are computed; the others get zeros.
        """
        if sigma <= 0:
            return torch.zeros_like(x)

        def call(rows: Tensor, item: Tensor) -> Tensor:
            v = self.flow.velocity(rows, sigma, item).float()
            self._count_calls(len(rows))
            return v

        return self._each(call, x, active)

    def euler(self, x: Tensor, v: Tensor, index: int) -> Tensor:
        """``x`` at level ``index`` taken to the next along ``v``."""
        sigma, to = self.sigmas[index], self.sigmas[index + 1]
        if isinstance(self.flow, OwnSteps):
            return self.flow.euler(x, v, sigma, to)
        return x + v * (to - sigma)

    def onward(self, x: Tensor, index: int, v: Tensor | None = None) -> Iterator[State]:
        """Ordinary sampling of ``x`` [P, B, ...] from level ``index`` to the last."""
        for level in range(index, self.steps):
            sigma = self.sigmas[level]
            v = self.velocity(x, sigma) if v is None else v
            denoised = x - sigma * v
            x, v = self.euler(x, v, level), None
            yield State(x, level + 1, denoised=denoised)

    def calls_to_finish(self, state: State) -> int:
        """Calls that an item takes at most to finish the best so far, or ``state``."""
        if self.samples is not None:
            return 0
        index = state.index if self.best is None else int(self.best.index.min())
        return self.steps - index + self.tail

    def finish_early(self, state: State) -> Iterator[State]:
        """The finished samples, if any; else the best look-ahead so far, sampled to the end.

        Each item starts at its own level and waits until the others have come there. Where nothing
        was judged it is the first candidate.
        """
        if self.samples is not None:
            yield self.samples
            return
        if self.best is None:
            yield from self.onward(state.x[:1], state.index)
            return
        x, index = self.best.x, self.best.index
        for level in range(int(index.min()), self.steps):
            moving = index <= level
            v = self.velocity(x[None], self.sigmas[level], moving)[0]
            moving = per_item(moving, x)
            denoised = torch.where(moving, x - self.sigmas[level] * v, self.best.clean)
            x = torch.where(moving, self.euler(x, v, level), x)
            yield State(x[None], level + 1, denoised=denoised[None])

    def look_ahead(
        self,
        x: Tensor,
        index: int,
        steps: int,
        v: Tensor | None = None,
        active: Tensor | None = None,
        stops: Sequence[int] = (),
    ) -> Look:
        """The images that ``x`` [P, B, ...] at level ``index`` comes to, judged.

        Seen by as many multistep steps over levels of the schedule, evenly spaced in it: one
        step is the posterior mean, blurred while noise is high; a few draw nearly the final image.
        Each takes a model call, the first none where ``v`` is known. With ``stops`` they go by
        those levels instead, the clean end the last of them, and the path is kept.
        """
        origin, start, last = x, index, len(self.levels) - 1
        if v is None and index < last:
            v = self.velocity(x, self.levels[index], active)
        first = v
        solver, path = Multistep(), {}
        for stop in stops or spaced(index, last, steps):
            x = solver.step(x, v, self.levels[index], self.levels[stop])
            index = stop
            if stop < last:
                v = self.velocity(x, self.levels[stop], active)
                if stops:
                    path[stop] = x, v
        values = self.judge(x, active)
        self._offer(values, origin, start, x)
        return Look(x, values, first, path)

    def finished(self, state: State) -> State:
        """The last state with its rewards, judged where they are not known."""
        if state.values is not None:
            return state
        look = self.look_ahead(state.x, self.steps, 1)
        clean = look.clean if state.denoised is None else state.denoised
        return State(state.x, state.index, values=look.values, denoised=clean)

    def finish(self, state: State) -> tuple[Tensor, Tensor, Values]:
        """Of the last state's population each item's best [B, ...], clean too, and rewards [1, B].

        The clean one is another where the schedule ends above 0: as the last step saw it.
        """
        state = self.finished(state)
        pick = torch.zeros(1, self.items, dtype=torch.long, device=state.x.device)
        if len(state.x) > 1:  # rewards of one alone may be none that totals know of yet
            pick = self.totals(state.values).argmax(0, keepdim=True)
        clean = state.x if state.denoised is None or not self.tail else state.denoised
        values = {n: take(v, pick) for n, v in state.values.items()}
        return take(state.x, pick)[0].clone(), take(clean, pick)[0].clone(), values

    def preview(self, state: State) -> Tensor:
        """Clean latents [B, ...] to show: an ordinary step's own, else the best look-ahead's."""
        if state.denoised is not None and state.values is None:
            return state.denoised[0]
        return state.x[0] if self.best is None else self.best.clean

    # Rewards

    def compare(self, values: Values) -> None:
        """Take rewards [P, B] that were found elsewhere into what totals are relative to."""
        for name, value in values.items():
            self._seen[name] = torch.cat([self._seen.get(name, value[:0]), value])

    def judge(self, clean: Tensor, active: Tensor | None = None) -> Values:
        """Rewards [P, B] of clean latents; NaN where an image is not finite or not ``active``."""

        def call(rows: Tensor, item: Tensor) -> Tensor:
            images = self.flow.decode(rows, item)
            self.cost.decodes += len(rows)
            whole = _finite(images)
            shown = whole if whole.any() else ~whole  # one at least, to know the rewards' names
            judged = images if shown.all() else images[shown]  # a copy only where it must be
            values = self.flow.score(judged, item[shown])
            self.cost.rewards += len(rows)
            names.extend(name for name in values if name not in names)
            found = torch.stack([values[name].float() for name in names], 1).to(clean.device)
            table = found.new_full((len(rows), len(names)), torch.nan)
            table[shown.to(clean.device)] = found
            return table.masked_fill(~whole.to(clean.device)[:, None], torch.nan)

        names: list[str] = []
        table = self._each(call, clean, active, empty=torch.nan)
        values = {name: table[..., column] for column, name in enumerate(names)}
        self._saw(values, active)
        return values

    def totals(self, values: Values) -> Tensor:
        """What drives [P, B]: higher is better, as things stand now; -inf where nothing judged."""
        low = -torch.inf
        return self.flow.totals(values, self._seen).nan_to_num(nan=low, posinf=low, neginf=low)

    def totals_beside(self, values: Values) -> Tensor:
        """The same of rewards [P, B] that were found elsewhere, taken into nothing."""
        seen = {n: torch.cat([self._seen.get(n, v[:0]), v]) for n, v in values.items()}
        return self.flow.totals(values, seen)

    def directions(self, values: Values) -> dict[str, int]:
        """By each reward's name whether a higher one raises the total (1), lowers it (-1), or not.

        Asked of the host with two candidates that differ in this reward alone.
        """
        found = {}
        for name in values:
            pair = {n: torch.zeros(2, self.items, device=self.noise.device) for n in values}
            pair[name][1] = 1
            low, high = self.flow.totals(pair, pair)[:, 0].tolist()
            found[name] = (high > low) - (high < low)
        return found

    # Gradients

    @contextmanager
    def linearised(self, x: Tensor, sigma: float) -> Iterator[tuple[Tensor, Pull]]:
        """v [B, ...] at ``x`` [B, ...] and a function c -> (dv/dx)^T c, to be called once, inside.

        Whatever else is computed inside builds no graph.
        """
        with torch.inference_mode(False), self.flow.gradients():
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                v = self.flow.velocity(leaf, sigma, self._item(1)).float()
            self._count_calls(len(x))

            def pull(c: Tensor) -> Tensor:
                self.cost.backwards += len(x)
                return torch.autograd.grad(v, leaf, c.clone())[0].detach()

            with torch.no_grad():
                yield v.detach(), pull

    def reward_gradient(self, x: Tensor, index: int) -> Tensor:
        """d total / d ``x`` [B, ...] through model, decoder and reward of a one-step look-ahead."""
        sigma, item = self.sigmas[index], self._item(1)
        with torch.inference_mode(False), self.flow.image_gradients(), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            v = self.flow.velocity(leaf, sigma, item).float()
            self._count_calls(len(x))
            clean = leaf - sigma * v
            images = self.flow.decode(clean, item)
            self.cost.decodes += len(x)
            scored = self.flow.score(images, item)
            self.cost.rewards += len(x)
            broken = ~_finite(images.detach())
            columns = {
                name: value.float().masked_fill(broken.to(value.device), torch.nan)[None]
                for name, value in scored.items()
            }
            total = self.flow.totals(columns, columns)
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total.nan_to_num().sum(), leaf)
            else:  # the reward failed on every image
                gradient = torch.zeros_like(x)
        self.cost.backwards += len(x)
        values = {name: value.detach() for name, value in columns.items()}
        self._saw(values)
        self._offer(values, x[None], index, clean.detach()[None])
        return gradient.nan_to_num()

    # Inside

    def _saw(self, values: Values, active: Tensor | None = None) -> None:
        every = torch.ones(self.items, dtype=torch.bool, device=self.noise.device)
        self.judged.append(Judged(values, every if active is None else active))
        self.compare(values)

    def _count_calls(self, rows: int) -> None:
        self.cost.model_calls += rows
        self.cost.forwards += rows * self.flow.forwards_per_call

    def _item(self, population: int) -> Tensor:
        return self._numbers if population == 1 else self._numbers.repeat(population)

    def _each(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        active: Tensor | None = None,
        empty: float = 0.0,
    ) -> Tensor:
        """``function`` of rows and items, in micro-batches, over a population [P, B, ...]."""
        rows, item = x.flatten(0, 1), self._item(len(x))
        chosen = None if active is None or bool(active.all()) else active.repeat(len(x))
        if chosen is not None:
            rows, item = rows[chosen], item[chosen]
        size = self.items * self._at_once or len(rows)
        parts = zip(rows.split(size), item.split(size), strict=True)
        out = torch.cat([function(*part) for part in parts])
        if chosen is not None:
            whole = out.new_full((len(chosen), *out.shape[1:]), empty)
            whole[chosen] = out
            out = whole
        return out.unflatten(0, (len(x), self.items))

    def _offer(self, values: Values, x: Tensor, index: int, clean: Tensor) -> None:
        """Keep the best of a population's look-aheads where it beats the best so far."""
        pick = self.totals(values).argmax(0, keepdim=True)
        level = torch.full((self.items,), index, device=x.device)
        new = Best(
            take(x, pick)[0],
            level,
            take(clean, pick)[0],
            {name: take(value, pick) for name, value in values.items()},
        )
        old = self.best
        if old is None:
            self.best = new
            return
        better = (self.totals(new.values) > self.totals(old.values))[0]
        if not bool(better.any()):
            return
        self.best = Best(
            torch.where(per_item(better, new.x), new.x, old.x),
            torch.where(better, new.index, old.index),
            torch.where(per_item(better, new.clean), new.clean, old.clean),
            {n: torch.where(better, value, old.values[n]) for n, value in new.values.items()},
        )


def _finite(images: Tensor) -> Tensor:
    """Which images [N, H, W, C] are finite throughout [N]: read off their extremes, exactly."""
    return images.amin((1, 2, 3)).isfinite() & images.amax((1, 2, 3)).isfinite()
