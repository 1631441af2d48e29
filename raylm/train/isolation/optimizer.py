"""AdamW that clips, and that isolates piece by piece while the values are in the cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch

from raylm.train.isolation.collectives import total
from raylm.train.isolation.core import Isolation
from raylm.train.isolation.parts import Part, piece

_Piece: TypeAlias = "tuple[int, int, list[tuple[Part, slice, slice]]]"
"""From, to, and the parts inside: each with its own window and the same elements counted from the piece's first."""


class IsolatedAdamW(torch.optim.AdamW):
    """AdamW with clipping by the global norm and isolation, on whole parameters or on ZeRO's flat partitions.

    Without a mask a step is exactly torch's. With one it is the same kernel on pieces of a parameter, each of which is
    observed, stepped and cut in turn, so that isolation costs little memory traffic and no copy of the model.
    """

    def __init__(self, params: Iterable[Any], *, clip: float = 0.0, **options: Any) -> None:
        """Take parameters as AdamW does; gradients whose global norm is above `clip` are scaled to it, 0 does not.

        Raises:
            ValueError: an option of AdamW that the isolated step does not have.
        """
        for name in ("amsgrad", "capturable", "differentiable", "foreach", "fused"):
            if options.get(name):
                raise ValueError(f"IsolatedAdamW has no {name}; attach an Isolation to torch.optim.AdamW instead")
        super().__init__(params, fused=True, **options)  # one pass over the memory instead of ten
        self.clip = clip
        self.isolation: Isolation | None = None
        self._plans: dict[int, list[_Piece]] = {}
        self._rooms: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self.padding: list[tuple[torch.Tensor, list[slice]]] = []
        """Flat parameters with what of them belongs to no tensor."""
        self.penalty: Any = None
        """A `Penalty`, whose gradient joins that of the loss."""
        self.grad_norm = 0.0
        """Global norm of the last step's gradient, before clipping."""

    partitioned = False
    """Whether each rank holds another part of the parameters, so that norms are summed over ranks."""

    def isolate(self, isolation: Isolation) -> None:
        """Isolate every step from now on; the state travels in `state_dict`."""
        self.isolation, self._plans = isolation, {}
        isolation.bind(self)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Observe, clip, step, leave protected values as they are, and make the mask anew when it is due.

        Raises:
            FloatingPointError: the gradient is not finite; nothing was changed.
        """
        for flat, gaps in self.padding:
            for gap in gaps if flat.grad is not None else ():
                flat.grad.view(-1)[gap] = 0  # DeepSpeed leaves what it finds in memory there
        if self.penalty is not None:
            self.penalty.add()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squares = sum((_squares(gradient) for gradient in gradients), torch.zeros((), dtype=torch.float64))
        self.grad_norm = float(total(squares.reshape(1))[0] if self.partitioned else squares) ** 0.5
        if self.grad_norm != self.grad_norm or self.grad_norm == float("inf"):
            raise FloatingPointError(f"the gradient's norm is {self.grad_norm}")
        factor = self.clip / (self.grad_norm + 1e-6) if self.clip and self.grad_norm > self.clip else 1.0
        isolation = self.isolation
        if isolation is not None and isolation.holds:
            self._isolated(isolation, factor)
        else:
            if isolation is not None:
                isolation.observe()
            if factor != 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
            super().step(closure)
        if isolation is not None:
            isolation.advance()

    def _isolated(self, isolation: Isolation, factor: float) -> None:
        task = isolation.importance.begin(isolation.task)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._pieces(isolation, task, group, param, factor)

    def _pieces(self, isolation: Isolation, task: str, group: dict[str, Any], param: Any, factor: float) -> None:
        state = self._state(param)
        state["step"] += 1
        flat, gradients = param.detach().view(-1), param.grad.detach().view(-1)
        first, second = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
        scratch = self._scratch(param)
        for start, end, inside in self._plan(isolation, param):
            gradient, values = gradients[start:end], flat[start:end]
            if isolation.importance.watches:
                for part, window, at in inside:
                    isolation.importance.observe(part, task, window, gradient[at], 1.0)
            if factor != 1.0:
                gradient.mul_(factor)
            old = scratch[: end - start].copy_(values)
            # The optimizer's own kernel, which counts no step by itself here.
            torch._fused_adamw_(
                [values], [gradient], [first[start:end]], [second[start:end]], [], [state["step"]],
                lr=float(group["lr"]), beta1=group["betas"][0], beta2=group["betas"][1],
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=group["maximize"],
            )  # fmt: skip
            for part, window, at in inside:
                isolation.cut(part, window, old[at])

    def _plan(self, isolation: Isolation, param: torch.Tensor) -> list[_Piece]:
        """How a parameter is cut into pieces, and which parts lie in each."""
        if id(param) not in self._plans:
            size = piece(param.device)
            plan: list[_Piece] = [
                (start, min(start + size, param.numel()), []) for start in range(0, param.numel(), size)
            ]
            for part in isolation.parts_of(param):
                begin, end = part.segment.start, part.segment.start + part.length
                for start, stop, inside in plan[begin // size : -(-end // size)]:
                    low, high = max(start, begin), min(stop, end)
                    inside.append((part, slice(low - begin, high - begin), slice(low - start, high - start)))
            self._plans[id(param)] = plan
        return self._plans[id(param)]

    def _scratch(self, param: torch.Tensor) -> torch.Tensor:
        """Room for one piece, which stays in the cache from one piece to the next."""
        key = (param.device, param.dtype)
        if key not in self._rooms:
            self._rooms[key] = torch.empty(piece(param.device), dtype=param.dtype, device=param.device)
        return self._rooms[key]

    def _state(self, param: torch.Tensor) -> dict[str, Any]:
        """Moments of a parameter, made as torch's AdamW makes them."""
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state


def _squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares in fp64, by pieces that stay in a CPU's cache."""
    flat = values.detach().reshape(-1)
    pieces = flat.split(piece(flat.device))
    return torch.stack([each.double().square().sum() for each in pieces]).sum().cpu()
