"""The prefix cache gives back exactly what was put in, to the token, and stays within its bound."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.llm.prefix_cache import PrefixCache, common_prefix

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def rows(ids):
    """Data of a sequence: each token's row tells its whole prefix, so that a mix-up shows."""
    told = [float(int("1" + "".join(map(str, ids[: end + 1])))) for end in range(len(ids))]
    return torch.tensor(told, dtype=torch.float64)[None, :, None]


def reader(ids):
    return lambda start, end: rows(ids)[..., start:end, :].clone()


def lookup(cache, ids):
    length, pieces = cache.match(ids)
    found = torch.cat(pieces, -2) if pieces else torch.empty(1, 0, 1, dtype=torch.float64)
    assert torch.equal(found, rows(ids[:length]) if length else torch.empty(1, 0, 1, dtype=torch.float64))
    return length


@settings(deadline=None)
@given(st.lists(IDS, max_size=12), IDS)
def test_a_match_is_the_longest_prefix_of_all_that_was_inserted(known, ids):
    cache = PrefixCache(1000)
    for item in known:
        cache.insert(item, reader(item))
    assert lookup(cache, ids) == max((common_prefix(item, ids) for item in known), default=0)
    prefixes = {tuple(item[:end]) for item in known for end in range(1, len(item) + 1)}
    assert cache.tokens == len(prefixes)  # nothing is held twice


@settings(deadline=None)
@given(st.lists(IDS, max_size=30), st.integers(1, 20))
def test_it_never_holds_more_than_its_bound_nor_gives_wrong_data(items, bound):
    cache = PrefixCache(bound)
    for item in items:
        cache.insert(item, reader(item))
        assert cache.tokens <= bound
        lookup(cache, item)


def test_what_was_used_last_is_kept():
    cache = PrefixCache(30)
    first, second, third = [1] * 12, [2] * 12, [3] * 12
    cache.insert(first, reader(first))
    cache.insert(second, reader(second))
    lookup(cache, first)
    cache.insert(third, reader(third))
    assert [lookup(cache, item) for item in (first, second, third)] == [12, 0, 12]


def test_only_unknown_tokens_are_read():
    cache, asked = PrefixCache(100), []

    def read(start, end):
        asked.append((start, end))
        return rows([5, 6, 7, 8, 9])[..., start:end, :]

    cache.insert([5, 6, 7], read)
    cache.insert([5, 6, 7, 8, 9], read)
    cache.insert([5, 6], read)
    assert asked == [(0, 3), (3, 5)]
