"""Seeds by purpose."""

from raylm.seeds import stable_seed


def test_stable_seed_is_fixed_and_separates_its_parts():
    assert stable_seed(0, "a", "b") == stable_seed(0, "a", "b")
    assert len({stable_seed(0, "ab", "c"), stable_seed(0, "a", "bc"), stable_seed(1, "a", "bc")}) == 3
    assert 0 <= stable_seed(5, "x") < 2**31
