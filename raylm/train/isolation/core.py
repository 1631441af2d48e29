"""Evolving parameter isolation (EPI, arXiv 2604.14010, as implemented here): a mask of parameters that stand still.

Every K steps after a warm-up, the share p with the largest importance is protected until the next refresh: the
optimizer's whole step, decay included, is undone for it. Gradients, moments and importance go on, so that protection
can end again.

    In = I / (mean of I over its tensor)  (mean form: source: our choice; I as `importance.py` has it)
    protected = In >= (1 - p) quantile    (global over tensors and ranks)
    theta <- theta + (1 - M) (AdamW(theta, g) - theta)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from raylm.train.config import IsolationConfig
from raylm.train.isolation import bits, drift, state
from raylm.train.isolation.fragments import Segment
from raylm.train.isolation.importance import POOLED, Importance
from raylm.train.isolation.masks import Chooser, Masks
from raylm.train.isolation.parts import Part, chosen, whole
from raylm.train.isolation.schedule import Schedule


class Isolation:
    """Protects the parameters of any training loop.

        isolation = Isolation(IsolationConfig(protect=0.05), whole(model), steps=1000)
        isolation.attach(optimizer)

    Then every optimizer step observes the gradients, leaves protected values as they were, and makes the mask anew
    when it is due. Works on whole tensors and on a rank's flat partition of them; masks are global over all ranks.
    """

    def __init__(
        self,
        config: IsolationConfig,
        parameters: nn.Module | Iterable[tuple[torch.Tensor, Sequence[Segment]]],
        *,
        steps: int,
    ) -> None:
        """Watch parameters.

        Args:
            config: share, schedule and score.
            parameters: a model, whose trainable parameters are taken, or flat parameters, each with the segments that
                it holds; padding lies outside of them.
            steps: optimizer steps of the whole run.

        Raises:
            UserError: the run is too short for its masks, a pattern fits no tensor, or the mask file does not fit.
        """
        self.config = config
        self.schedule = Schedule(config, steps)
        held = whole(parameters) if isinstance(parameters, nn.Module) else list(parameters)
        self.shapes = chosen([part for _, parts in held for part in parts], config.include, config.exclude)
        self.parts = [
            Part(param, segment) for param, segments in held for segment in segments if segment.name in self.shapes
        ]
        self.importance = Importance(config, self.parts, self.shapes)
        self.chooser = Chooser(config, self.parts, self.importance, self.shapes)
        self.step = 0
        """Optimizer steps done."""
        self.refreshed_at = 0
        """Step of the last refresh."""
        self.refreshes = 0
        self.task = POOLED
        """Task of the gradients to come, with scope=per_task."""
        self.log: list[dict[str, Any]] = []
        """A row a refresh; see `refresh`."""
        self._by_param: dict[int, list[Part]] = {}
        for part in self.parts:
            self._by_param.setdefault(id(part.param), []).append(part)
        if config.source == "file":
            state.load_mask(config.mask_file, self.parts, self.shapes)

    @property
    def holds(self) -> bool:
        """Whether any step is cut now."""
        return any(part.bits is not None for part in self.parts)

    def attach(self, optimizer: torch.optim.Optimizer, observe: bool = True) -> None:
        """Let every step of an optimizer be isolated, and let this state travel in its `state_dict`.

        Args:
            observe: fold gradients into the importance at each step; False where the loop calls `observe` itself,
                before it clips them.
        """
        held: list[list[torch.Tensor]] = []

        def before(*_: Any) -> None:
            if observe:
                self.observe()
            held.append(self.hold())

        def after(*_: Any) -> None:
            self.release(held.pop())
            self.advance()

        self.bind(optimizer)
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Read moments from an optimizer, and let this state travel in its `state_dict`."""
        self.importance.optimizer = optimizer

        def save(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
            return saved | {"isolation": self.state_dict()}

        def load(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
            if "isolation" in saved:
                self.load_state_dict(saved["isolation"])
            return {key: value for key, value in saved.items() if key != "isolation"}

        optimizer.register_state_dict_post_hook(save)
        optimizer.register_load_state_dict_pre_hook(load)

    def observe(self, scale: float = 1.0) -> None:
        """Fold the parameters' gradients, times `scale`, into their importance; once a step."""
        task = self.importance.begin(self.task)
        if not self.importance.watches:
            return
        for part in self.parts:
            gradient = part.gradient
            if gradient is not None:
                for window in part.windows():
                    self.importance.observe(part, task, window, gradient[window], scale)

    def parts_of(self, param: torch.Tensor) -> list[Part]:
        """Those that lie in a parameter, in order."""
        return self._by_param.get(id(param), [])

    def hold(self) -> list[torch.Tensor]:
        """What `release` needs: protected values, or all values where steps are shortened rather than undone."""
        if not self.holds:
            return []
        held = []
        for part in self.parts:
            for window in part.windows():
                values = part.values[window]
                whole_window = part.levels is not None or self._ramping(part)
                held.append(values.clone() if whole_window else values.masked_select(self._protected(part, window)))
        return held

    def release(self, held: Sequence[torch.Tensor]) -> None:
        """Put back what is protected, bit for bit."""
        if not held:
            return
        windows = ((part, window) for part in self.parts for window in part.windows())
        for (part, window), values in zip(windows, held, strict=True):
            if part.levels is not None or self._ramping(part):
                self.cut(part, window, values)
            else:
                part.values[window].masked_scatter_(self._protected(part, window), values)

    def cut(self, part: Part, window: slice, old: torch.Tensor) -> None:
        """Undo a step in a window where it is protected, and shorten it where the mask is soft or coming off."""
        if part.bits is None:
            return
        values = part.values[window]
        if part.levels is not None:
            share = part.levels[window].to(values.dtype) / 255
            values.copy_(torch.lerp(old, values, share))
            return
        if self._ramping(part):
            assert part.ramp is not None
            share = (self.step - self.refreshed_at + 1) / (self.config.release_ramp + 1)
            coming = bits.window(part.ramp, window.start, window.stop)
            torch.where(coming, torch.lerp(old, values, share), values, out=values)
        bits.put_back(values, old, part.bits, window.start)

    def advance(self) -> dict[str, Any] | None:
        """Count a step, and make the mask anew when it is due; returns the row of `log` then."""
        self.step += 1
        return self.refresh() if self.schedule.due(self.step) else None

    @torch.no_grad()
    def refresh(self) -> dict[str, Any]:
        """Make the mask anew; all ranks together.

        Returns:
            a row of `log`: step, share, threshold, density, jaccard_previous and jaccard_first (None at the first
            mask), entered and released (parameters), parameters, layers {tensor: density}, and, where noise is
            measured, noise_ceiling and halves_first: the overlap of masks from disjoint batches now, and of such a one
            with that of the first refresh.
        """
        share = self.schedule.share(self.step)
        raw = self.chooser.masks(share, self.refreshes)
        old: list[torch.Tensor | None] = [part.bits for part in self.parts]
        for part, mask in zip(self.parts, raw, strict=True):
            part.bits = self._lasting(part, mask)
            if self.config.mask == "soft":
                part.levels = self.chooser.soften(part)
        for part, before in zip(self.parts, old, strict=True):
            self._let_go(part, before)
        row = {"step": self.step, "share": share, "threshold": self.chooser.threshold}
        row |= drift.row(self.parts, old, self.shapes)
        if self.config.measure_noise:
            row |= drift.noise(self._halves(share), self.parts)
        self.refreshed_at, self.refreshes = self.step, self.refreshes + 1
        self.log.append(row)
        return row

    def bytes(self) -> dict[str, int]:
        """Memory of this rank: `importance` and `mask` beside the model, and `first`, on the host, for the log."""
        found = {"importance": 0, "mask": 0, "first": 0}
        for part in self.parts:
            averages = [*part.importance.values(), part.even]
            for kind, tensors in (
                ("importance", averages),
                ("mask", [part.bits, part.ramp, part.levels, *part.chosen]),
                ("first", [part.first]),
            ):
                found[kind] += sum(t.numel() * t.element_size() for t in tensors if t is not None)
        return found

    def state_dict(self) -> dict[str, Any]:
        """State of this rank, by tensor and place; see `state`."""
        return state.collect(self)

    def load_state_dict(self, saved: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` gave, from this rank or from all ranks, however many there were.

        Raises:
            UserError: the state is of another model or of other settings.
        """
        state.restore(self, [saved] if isinstance(saved, dict) else saved)

    def _lasting(self, part: Part, raw: torch.Tensor) -> torch.Tensor:
        """The mask, with what was chosen within the last refreshes where hysteresis looks back."""
        if self.config.hysteresis == 1:
            return raw
        part.chosen = [*part.chosen, raw][-self.config.hysteresis :]
        lasting = raw.clone()
        for earlier in part.chosen[:-1]:
            lasting |= earlier
        return lasting

    def _let_go(self, part: Part, before: torch.Tensor | None) -> None:
        """Treat the moments of what was released, and begin its way back to whole steps."""
        if before is None or part.bits is None:
            return
        released = before & ~part.bits
        part.ramp = released if self.config.release_ramp else None
        moment = part.moment(self.importance.optimizer, "exp_avg") if self.config.on_release != "keep" else None
        if moment is None:
            return
        left = 0.0 if self.config.on_release == "reset" else self.config.release_decay
        for window in part.windows():
            values = moment[window]
            torch.where(bits.window(released, window.start, window.stop), values * left, values, out=values)

    def _halves(self, share: float) -> tuple[Masks, Masks]:
        return self.chooser.masks(share, self.refreshes, 0), self.chooser.masks(share, self.refreshes, 1)

    def _ramping(self, part: Part) -> bool:
        return part.ramp is not None and self.step - self.refreshed_at < self.config.release_ramp

    def _protected(self, part: Part, window: slice) -> torch.Tensor:
        assert part.bits is not None
        return bits.window(part.bits, window.start, window.stop)
