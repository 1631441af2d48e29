"""Models are verified, replaced while they serve, kept when the new files are damaged, and let go when others come."""

import asyncio
import hashlib
import json
import shutil

import pytest

from raylm.errors import UserError
from raylm.serve import reward
from raylm.serve.config import RewardSource
from raylm.serve.metrics import Metrics
from raylm.serve.versions import Source, Versions, verify
from raylm.srm.model import RewardModel


def source(file):
    def load():
        if file.read_text() == "broken":
            raise OSError("cut short")
        return file.read_text()

    return Source(load, (file.parent,))


def versions(tmp_path, names, most=8):
    loads = []
    made = {}
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name} 1")
        made[name] = source(tmp_path / name / "file")
    return Versions(made, most, lambda name, outcome: loads.append((name, outcome))), loads


def test_new_files_are_served_and_damaged_ones_are_not(tmp_path):
    models, loads = versions(tmp_path, ["a"])
    assert models.get("a") == "a 1"
    models.refresh()
    assert loads == [("a", "new")]
    (tmp_path / "a/file").write_text("a 2")
    models.refresh()
    assert models.get("a") == "a 2"
    (tmp_path / "a/file").write_text("broken")
    models.refresh()
    models.refresh()  # is not tried again before the files change
    assert models.get("a") == "a 2"
    assert models.errors["a"] == "OSError: cut short"
    assert loads[2:] == [("a", "failed")]
    (tmp_path / "a/file").write_text("a 3!")
    models.refresh()
    assert models.get("a") == "a 3!"
    assert models.errors == {}


def test_a_link_that_is_pointed_elsewhere_is_a_new_version(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_text("same size")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "1")
    models = Versions({"a": Source(lambda: link.resolve().name, (link,))}, 1, lambda *_: None)
    assert models.get("a") == "1"
    (tmp_path / "new").symlink_to(tmp_path / "2")
    (tmp_path / "new").rename(link)
    models.refresh()
    assert models.get("a") == "2"


def test_the_model_that_was_not_used_for_longest_goes(tmp_path):
    models, loads = versions(tmp_path, "abc", most=2)
    for name in "abac":
        models.get(name)
    assert models.peek("b") is None
    assert (models.peek("a"), models.peek("c")) == ("a 1", "c 1")
    models.get("b")
    assert loads == [(name, "new") for name in "abcb"]


def test_a_model_that_never_loaded_is_an_error(tmp_path):
    models, _ = versions(tmp_path, ["a"])
    (tmp_path / "a/file").write_text("broken")
    with pytest.raises(UserError, match="cut short"):
        models.get("a")


@pytest.fixture
def signed(served_models, tmp_path):
    """A reward model as its stage leaves it, with the manifest beside it."""
    shutil.copytree(served_models / "first", tmp_path / "model")
    files = [path for path in (tmp_path / "model").iterdir() if path.is_file()]
    outputs = {f"model/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (tmp_path / "manifest.json").write_text(json.dumps({"outputs": outputs}))
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "srm.safetensors", "tokenizer.json", "srm.json"])
def test_a_changed_file_is_refused_by_its_hash(signed, name):
    verify(signed)
    data = bytearray((signed / name).read_bytes())
    data[-3] ^= 1
    (signed / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.*SHA-256"):
        verify(signed)
    (signed / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*missing"):
        verify(signed)


@pytest.mark.parametrize("name", ["model.safetensors", "srm.safetensors"])
def test_a_reward_model_that_is_cut_short_keeps_the_old_one(served_models, tmp_path, name):
    shutil.copytree(served_models / "first", tmp_path / "model")
    models = Versions(reward.sources({"a": RewardSource(path=str(tmp_path / "model"))}, 1, 0), 1, lambda *_: None)
    before = models.get("a")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[:-100])
    models.refresh()
    assert models.get("a") is before
    assert "a" in models.errors


def test_a_service_says_what_it_cannot_load_and_serves_the_rest(served_models, tmp_path):
    shutil.copytree(served_models / "first", tmp_path / "broken")
    (tmp_path / "broken" / "srm.json").write_text("{")
    paths = {"whole": served_models / "first", "broken": tmp_path / "broken"}
    given = {name: RewardSource(path=str(path)) for name, path in paths.items()}
    service = reward.RewardService(reward.sources(given, 1, 0), Metrics())
    service.start()

    async def scene():
        asked = [service.score(name, "red", ["one"]) for name in ("whole", "broken", "later", "whole")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        await service.close()
        return found, await service.models()

    (whole, broken, later, again), models = asyncio.run(scene())
    assert whole == again
    assert (broken.status, broken.code) == (503, "model_unavailable")
    assert (later.status, later.code) == (503, "model_not_ready")
    assert [(model.id, model.loaded) for model in models] == [("whole", True), ("broken", False)]
    assert "srm.json" in models[1].error


def test_a_revision_that_was_asked_for_is_held_to(served_models):
    path = str(served_models / "first")
    right = RewardModel.load(path).revision
    for revision, fine in ((right, True), ("0" * 12, False)):
        (source,) = reward.sources({"a": RewardSource(path=path, revision=revision)}, 1, 0).values()
        if fine:
            assert source.load().revision == right
        else:
            with pytest.raises(UserError, match=f"its revision is {right}"):
                source.load()


def test_a_directory_that_is_not_there_is_named_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match=r"reward\.a\.path"):
        reward.sources({"a": RewardSource(path=str(tmp_path / "none"))}, 1, 0)
