"""Configs: layering, validation messages, identity and help."""

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from raylm import config
from raylm.config import Config, runtime
from raylm.errors import UserError


class Inner(Config):
    width: int = 3
    """How wide."""
    workers: int = runtime(1)
    """Actors."""


class Outer(Config):
    name: str = "a"
    """A label."""
    rate: float = 0.5
    """A rate."""
    inner: Inner = Inner()
    """Nested."""
    items: tuple[Inner, ...] = ()
    """Many."""
    out: str = runtime("runs/x")
    """Where."""


def test_later_files_and_overrides_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("name: one\ninner: {width: 5, workers: 2}\n")
    second.write_text("inner: {width: 7}\n")
    loaded = config.load(Outer, [str(first), str(second), "rate=1e-3", "inner.workers=4"])
    assert loaded.name == "one"
    assert loaded.inner == Inner(width=7, workers=4)
    assert loaded.rate == 1e-3


class Group(Config):
    depth: int = 1
    inner: Inner = Inner()


class Own(Config):
    inner: Inner = Inner(width=9, workers=2)
    group: Group = Group(depth=4, inner=Inner(width=6))
    either: Inner | None = Inner(width=8)


def test_one_key_of_a_group_leaves_the_others_as_the_owner_has_them():
    loaded = config.load(Own, ["inner.workers=5", "group.inner.workers=7", "either={workers: 3}"])
    assert loaded.inner == Inner(width=9, workers=5)
    assert loaded.group == Group(depth=4, inner=Inner(width=6, workers=7))
    assert loaded.either == Inner(workers=3), "a group that may be absent is as it is given"
    assert config.load(Own, ["group.depth=2"]).group == Group(depth=2, inner=Inner(width=6))
    assert config.load(Own) == Own()


def test_a_sentence_with_a_colon_is_text():
    assert config.load(Outer, ["name=write Answer: N"]).name == "write Answer: N"
    assert config.load(Outer, ["inner={width: 4}"]).inner.width == 4


def test_lists_of_configs_come_from_yaml_flow():
    assert config.load(Outer, ["items=[{width: 1}, {width: 2}]"]).items == (Inner(width=1), Inner(width=2))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nane=x"], ["unknown key nane", "did you mean name?"]),
        (["iner.width=2"], ["unknown key iner", "did you mean inner?"]),
        (["inner.widht=2"], ["unknown key inner.widht", "did you mean inner.width?"]),
        (["items=[{witdh: 2}]"], ["items.0.witdh", "did you mean items.width?"]),
        (["inner.width=wide"], ["inner.width", "valid integer", "'wide'"]),
        (["missing.yaml"], ["missing.yaml", "no such config file"]),
        (["name.x=1", "name=[1"], ["name", "not valid YAML"]),
    ],
)
def test_a_wrong_argument_is_named_with_its_remedy(args, words):
    with pytest.raises(UserError) as error:
        config.load(Outer, args)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_malformed_yaml_names_file_and_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("name: a\ninner: {width: 3\nrate: 1\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line \d"):
        config.load(Outer, [str(file)])
    file.write_text("- a list\n")
    with pytest.raises(UserError, match="mapping"):
        config.load(Outer, [str(file)])


def test_runtime_fields_do_not_change_the_hash_and_others_do():
    base = config.config_hash(Outer())
    assert config.config_hash(Outer(out="elsewhere", inner=Inner(workers=9))) == base
    assert config.config_hash(Outer(inner=Inner(width=4))) != base
    assert config.config_hash(Outer(items=(Inner(),))) != base


@example("a\x85b", 0.5, [])
@example("\u2028\r", 0.5, [])
@given(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers(0, 9), max_size=3))
def test_a_shown_config_loads_to_itself(name, rate, widths):
    made = Outer(name=name, rate=rate, items=tuple(Inner(width=width) for width in widths))
    again = config.build(Outer, yaml.safe_load(config.to_yaml(made)))
    assert again == made
    assert config.config_hash(again) == config.config_hash(made)


def test_help_lists_every_field_with_default_and_meaning():
    rows = {key: (kind, default, meaning) for key, kind, default, meaning in config.describe(Outer)}
    assert rows["inner.width"] == ("int", "3", "How wide.")
    assert rows["items[].width"][2] == "How wide."
    assert set(rows) == {
        "name",
        "rate",
        "inner.width",
        "inner.workers",
        "items",
        "items[].width",
        "items[].workers",
        "out",
    }


def test_configs_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Outer().name = "b"
