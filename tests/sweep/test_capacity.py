"""How many trials fit: never more than a cluster can hold, and no fewer than it surely can."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.sweep.capacity import Need, concurrent, fits


def holds(nodes, need, count):
    """Whether some placing of drivers and workers fits, by trying all placings of the drivers."""
    for homes in itertools.combinations_with_replacement(range(len(nodes)), count if need.driver_cpus else 0):
        places = 0
        for number, node in enumerate(nodes):
            left = node["CPU"] - need.driver_cpus * homes.count(number)
            if left < 0:
                break
            rooms = [left // need.cpus] if need.cpus else []
            rooms += [node["GPU"] // need.gpus] if need.gpus else []
            places += int(min(rooms))
        else:
            if places >= count * need.workers:
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=3),
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2),
)  # fmt: skip
def test_as_many_as_some_placing_holds_and_no_more(sizes, workers, cpus, gpus, driver):
    nodes = [{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in sizes]
    need = Need(workers, cpus, gpus, driver)
    found = fits(nodes, need)
    assert found == 0 or holds(nodes, need, found)
    assert not holds(nodes, need, found + 1)


def test_fractions_of_cpus_are_counted_without_losing_one_to_rounding():
    assert fits([{"CPU": 1.0}], Need(1, 0.1, 0, 0)) == 10
    assert fits([{"CPU": 2.0}], Need(2, 1.0, 0, 0.0)) == 1


def test_what_does_not_fit_is_named():
    nodes = [{"CPU": 2.0}, {"CPU": 1.0}]
    assert concurrent(nodes, Need(1, 1, 0, 0), 0) == 3
    assert concurrent(nodes, Need(1, 1, 0, 0), 2) == 2
    with pytest.raises(UserError, match=r"no trial fits .* 4 workers with 1 CPUs .* 2 nodes have 3 CPUs and 0 GPUs"):
        concurrent(nodes, Need(4, 1, 0, 0), 0)
    with pytest.raises(UserError, match=r"max_concurrent=3: only 1 fit at once"):
        concurrent(nodes, Need(2, 1, 0, 1), 3)
    with pytest.raises(UserError, match="no trial fits"):
        concurrent(nodes, Need(1, 1, 1, 0), 0)
