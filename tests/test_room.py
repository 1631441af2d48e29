"""Workers that do not fit are refused where nothing can change that, and waited for where a cluster may grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm import room
from raylm.errors import UserError

NODES = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]


def test_a_worker_is_on_one_node():
    assert [room.places(node, 3, 0) for node in NODES] == [0, 2]
    assert [room.places(node, 1, 0.5) for node in NODES] == [0, 2]
    assert [room.places(node, 0, 1) for node in NODES] == [0, 1]


@pytest.mark.parametrize(("wanted", "cpus", "gpus"), [(3, 3, 0), (2, 1, 1), (1, 9, 0)])
def test_what_this_machine_cannot_have_is_refused(wanted, cpus, gpus, capsys):
    with pytest.raises(UserError, match=r"workers: .* this machine has 2 CPUs and 0 GPUs, 8 CPUs and 1 GPUs"):
        room.check(NODES, wanted, cpus, gpus, "workers", own=True)
    room.check(NODES, wanted, cpus, gpus, "workers", own=False)
    assert "the cluster has room for" in capsys.readouterr().err


@pytest.mark.parametrize(("wanted", "cpus", "gpus"), [(2, 3, 0), (5, 2, 0), (1, 8, 1), (99, 0, 0)])
def test_what_fits_passes_without_a_word(wanted, cpus, gpus, capsys):
    room.check(NODES, wanted, cpus, gpus, "workers", own=True)
    assert capsys.readouterr().err == ""


def test_a_pool_goes_on_with_the_workers_that_fit(capsys):
    room.check(NODES, 4, 3, 0, "min_workers", own=True, needed=1)
    assert "4 x 3 CPUs are asked for (min_workers)" in (said := capsys.readouterr().err)
    assert said.endswith("2 run\n")
    with pytest.raises(UserError, match="min_workers"):
        room.check(NODES, 4, 9, 0, "min_workers", own=True, needed=1)


@given(st.floats(0.1, 64), st.floats(0.01, 8), st.floats(0, 64))
def test_places_hold_what_is_placed_and_not_one_more(cpus, each, taken):
    count = room.places({"CPU": cpus}, each, 0, taken)
    assert count * each <= max(0.0, cpus - taken) + 1e-6
    assert (count + 1) * each > cpus - taken - 1e-6
