"""What a submission refuses before a cluster is asked, and the entry points that it runs."""

import importlib.util
import os

import pytest

from raylm import submit
from raylm.cli import VERBS
from raylm.errors import UserError
from raylm.submit import Request

SUMS = ("problems=[{name: chain_sum, limit: 2}]", "out=/shared/explore")
HERE = "http://127.0.0.1:8265"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_an_entry_point(verb):
    assert importlib.util.find_spec(f"jobs.{verb.replace('-', '_')}") is not None


def test_equal_requests_share_a_name_and_the_entry_point_is_quoted():
    entrypoint, name = submit.prepare(Request("explore", SUMS, HERE))
    assert entrypoint == "python -m jobs.explore 'problems=[{name: chain_sum, limit: 2}]' out=/shared/explore"
    assert submit.prepare(Request("explore", (*SUMS, "compute.cpus=3"), HERE))[1] == name  # the same rows
    assert submit.prepare(Request("explore", (*SUMS, "seed=1"), HERE))[1] != name
    assert submit.prepare(Request("explore", (SUMS[0], "out=/shared/other"), HERE))[1] != name


def test_config_files_travel_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "mine.yaml").write_text("out: s3://bucket/x\nproblems: [{name: chain_sum, limit: 2}]\n")
    inside = Request("explore", ("checkout/mine.yaml",), HERE, working_dir="checkout")
    assert submit.prepare(inside)[0] == "python -m jobs.explore mine.yaml"
    outside = Request("explore", ("checkout/mine.yaml",), HERE, working_dir="checkout/..")
    assert submit.prepare(outside)[0] == "python -m jobs.explore checkout/mine.yaml"
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"lies outside the working directory .*elsewhere"):
        submit.prepare(Request("explore", ("checkout/mine.yaml",), HERE, working_dir="elsewhere"))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("explor", SUMS, HERE), "no verb 'explor'"),
        (Request("explore", ("nothere.yaml",), HERE), r"nothere\.yaml: no such config file"),
        (Request("explore", (*SUMS, "serch=1"), HERE), "unknown key serch"),
        (Request("explore", SUMS[:1], HERE), "out=runs/explore is relative: .* absolute path"),
        (Request("explore", SUMS, "127.0.0.1:8265"), "give the dashboard's address, such as http"),
        (Request("explore", SUMS, HERE, token_file="/no/token"), "/no/token: no such token file"),
    ],
)
def test_mistakes_are_named_before_anything_travels(request_, words):
    with pytest.raises(UserError, match=words):
        submit.submit(request_)


def test_a_token_that_others_can_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    with pytest.raises(UserError, match=f"others can read this token.*chmod 600 {token}"):
        submit.authenticate(Request("explore", SUMS, HERE, token_file=str(token)))
    token.chmod(0o600)
    submit.authenticate(Request("explore", SUMS, HERE, token_file=str(token)))
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]) == ("token", str(token))


def test_rays_own_token_is_taken_and_closed_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    submit.authenticate(Request("explore", SUMS, HERE))
    assert token.stat().st_mode & 0o777 == 0o600
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)


def test_a_token_on_an_open_line_is_warned_of(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    submit.authenticate(Request("explore", SUMS, "http://cluster.example:8265"))
    assert "not encrypted" in capsys.readouterr().err
    submit.authenticate(Request("explore", SUMS, HERE))
    assert not capsys.readouterr().err


def test_environment_variables_have_names_and_values():
    assert submit.parse_env(["A=1", "B=x=y"]) == {"A": "1", "B": "x=y"}
    with pytest.raises(UserError, match="--env A: write NAME=VALUE"):
        submit.parse_env(["A"])


class _Cluster:
    """Answers each submission with what was given."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def submit_job(self, **job):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


LATE = RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later..")


def test_a_new_cluster_may_need_a_moment_until_it_starts_jobs(monkeypatch):
    monkeypatch.setattr(submit, "_POLL", 0.0)
    assert submit._start(_Cluster(LATE, LATE, "job-1"), entrypoint="x") == "job-1"
    monkeypatch.setattr(submit, "_LOST", 0.01)
    with pytest.raises(UserError, match=r"the agent on its head that starts jobs does not; see dashboard_agent\.log"):
        submit._start(_Cluster(LATE), entrypoint="x")
    with pytest.raises(UserError, match=r"the cluster refused the job: .* no such package"):
        submit._start(_Cluster(RuntimeError("Request failed: no such package")), entrypoint="x")
