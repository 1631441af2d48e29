"""Evolving parameter isolation for any PyTorch training loop."""

from raylm.train.config import IsolationConfig
from raylm.train.isolation.core import Isolation
from raylm.train.isolation.fragments import Segment
from raylm.train.isolation.optimizer import IsolatedAdamW
from raylm.train.isolation.parts import whole
from raylm.train.isolation.state import save_mask

__all__ = ["IsolatedAdamW", "Isolation", "IsolationConfig", "Segment", "save_mask", "whole"]
