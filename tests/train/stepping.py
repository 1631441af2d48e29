"""Steps on made-up gradients, for tests of isolation."""

import torch

from raylm.train.isolation import IsolatedAdamW, Isolation, IsolationConfig, bits, whole

OPTIONS = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}
SHAPES = ((8, 5), (7,), (40, 3))
STEPS = 40


def make_params(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def named(params):
    return whole((f"t{number}", param) for number, param in enumerate(params))


def set_grads(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator)


def isolated(params, clip=0.0, steps=STEPS, **changes):
    optimizer = IsolatedAdamW(params, clip=clip, **OPTIONS)
    config = IsolationConfig(**{"refresh_every": 3, "warmup": 2, **changes})
    optimizer.isolate(Isolation(config, named(params), steps=steps))
    return optimizer


def train(params, optimizer, steps, start=0):
    for step in range(start, steps):
        set_grads(params, step)
        optimizer.step()


def masks_of(isolation):
    return [None if part.bits is None else bits.unpack(part.bits, part.length) for part in isolation.parts]


def flat(params):
    return [param.detach().clone().view(-1) for param in params]
