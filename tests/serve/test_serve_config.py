"""Configs, and the verb's arguments, before anything starts."""

import re
from pathlib import Path

import pytest
import yaml

from raylm.cli import VERBS, run_verb
from raylm.config import build
from raylm.errors import UserError
from raylm.serve import app, run
from raylm.serve.auth import Keys
from raylm.serve.config import Key, ServeConfig

ROOT = Path(__file__).parent.parent.parent
REWARD = {"reward": {"a": {"path": "x"}}}
KEY = {"name": "alice", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"host": "0.0.0.0"}, "only loopback"),
        ({"haproxy": True}, "only loopback"),
        ({"keys": [{"name": "alice", "sha256": "my-token"}]}, "not the token itself"),
        ({"keys": [KEY, KEY]}, "same name"),
        ({"reward": {"../a": {"path": "x"}}}, "model name"),
        ({**REWARD, "retriever": {"a": {}}}, "same name"),
        ({"retriever": {"a": {"journal": "j"}}}, "give one"),
        ({"limits": {"texts": 0}}, "at least 1"),
        ({"scaling": {"min_replicas": 3}}, "max_replicas"),
        ({"rewards": {}}, "did you mean reward"),
    ],
)
def test_what_cannot_be_served_is_refused(data, words):
    with pytest.raises(UserError, match=re.escape(words)):
        build(ServeConfig, data)


def test_a_key_for_a_model_that_is_not_there_is_refused():
    config = build(ServeConfig, {**REWARD, "keys": [{**KEY, "models": ["b"]}]})
    with pytest.raises(UserError, match="no model 'b'; there are a"):
        app.check(config, ("reward",))
    with pytest.raises(UserError, match="retriever: no model"):
        app.check(build(ServeConfig, REWARD), ("reward", "retriever"))


def test_a_first_word_says_what_is_served(capsys):
    assert VERBS["serve"].load(["retriever", "port=1"]).app == "retriever"
    assert VERBS["serve"].load(["port=1"]).app == "all"
    assert run_verb("serve", ["rewards"]) == 2
    assert "app" in capsys.readouterr().err


def test_a_directory_or_a_port_that_cannot_be_had_is_named_before_ray_starts(tmp_path, capsys):
    assert run_verb("serve", ["reward", f"reward={{a: {{path: {tmp_path}/none}}}}"]) == 2
    assert "reward.a.path" in capsys.readouterr().err
    assert run_verb("serve", ["reward", f"reward={{a: {{path: {tmp_path}}}}}", "host=127.0.0.1", "port=1000000"]) == 2
    assert "port" in capsys.readouterr().err


def test_a_printed_token_opens_what_its_entry_says(capsys):
    run.token("alice")
    printed = capsys.readouterr().out
    token = re.search(r"raylm-\S+", printed).group()
    key = build(Key, yaml.safe_load(printed.partition("for the config:")[2])["keys"][0])
    assert Keys([key]).who(f"Bearer {token}".encode(), None).name == "alice"
    assert token not in printed.partition("for the config:")[2]


def test_the_cluster_file_is_one_that_serve_deploys():
    from ray.serve.schema import ServeDeploySchema

    said = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "cluster/serve.yaml").read_text()))
    (application,) = said.applications
    module, name = application.import_path.split(":")
    assert module == app.__name__
    config = build(ServeConfig, application.args)
    app.check(config, app.KINDS)
    assert callable(getattr(app, name))
    assert config.keys
    assert said.http_options.request_timeout_s > config.limits.request_seconds


def test_a_replica_that_goes_outlives_the_longest_request():
    config = build(ServeConfig, {"limits": {"body_seconds": 7, "request_seconds": 90}})
    assert app._options(config, "Gateway", {})["graceful_shutdown_timeout_s"] > 97
