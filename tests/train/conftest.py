"""What tests of training share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Kernels round the ends of a thread's share differently, and sharing out depends on the size of a piece."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
