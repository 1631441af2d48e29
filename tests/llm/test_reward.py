"""Reward models for the search: a local classifier, and one behind HTTP."""

import asyncio
import http.server
import json
import threading

import pytest
import torch

from raylm.errors import EngineDied, UserError
from raylm.llm import models, reward


class Handler(http.server.BaseHTTPRequestHandler):
    reply = staticmethod(lambda items: {"scores": [0.5 for _ in items]})
    seen: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.seen.append(body)
        answer = json.dumps(Handler.reply(body["items"])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Handler.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_local_classifier_scores_alike_alone_and_in_company(classifier):
    async def scores():
        model = await reward.build(str(classifier))
        alone = await model.score("2 + 2?", "Answer: 4")
        together = await asyncio.gather(*(model.score("2 + 2?", f"Answer: {n}") for n in range(8)))
        return model, alone, together

    model, alone, together = asyncio.run(scores())
    assert together[4] == alone
    assert len(set(together)) == 8
    assert all(0 < value < 1 for value in together)
    ids = torch.tensor([model._ids("2 + 2?", "Answer: 4")])
    assert alone == pytest.approx(model.model(input_ids=ids).logits[0, 0].sigmoid().item())


def test_a_response_that_does_not_fit_is_refused_and_not_cut(classifier):
    model = reward.LocalReward(str(classifier))
    with pytest.raises(ValueError, match="positions of the reward model"):
        asyncio.run(model.score("q", "x" * 5000))


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        reward.LocalReward(str(tmp_path))
    with pytest.raises(UserError, match="LlamaForCausalLM with 2 outputs is no reward model"):
        reward.LocalReward(str(models.resolve("micro").path))


def test_a_served_model_gets_question_and_response(service):
    model = asyncio.run(reward.build(service))
    assert asyncio.run(model.score("q", "r")) == 0.5
    assert Handler.seen == [{"items": [{"question": "q", "response": "r"}]}]


@pytest.mark.parametrize("answer", [{}, {"scores": []}, {"scores": [2]}, {"scores": [0.1, 0.2]}, [1]])
def test_a_service_that_answers_nonsense_is_named(service, answer, monkeypatch):
    monkeypatch.setattr(Handler, "reply", staticmethod(lambda items: answer))
    with pytest.raises(EngineDied, match=r"127\.0\.0\.1:\d+/score answers .*not one score in"):
        asyncio.run(reward.ServedReward(service).score("q", "r"))


def test_a_service_that_is_not_there_is_named():
    with pytest.raises(EngineDied, match=r"http://127\.0\.0\.1:9/ does not answer"):
        asyncio.run(reward.ServedReward("http://127.0.0.1:9/").score("q", "r"))


@pytest.fixture(scope="module")
def structural(tmp_path_factory):
    """A directory of a structural reward model over the micro model."""
    from raylm.srm import backbone
    from raylm.srm.config import BranchConfig, FusionConfig
    from raylm.srm.model import RewardModel
    from raylm.srm.structure import Structure

    torch.manual_seed(0)
    specs = (BranchConfig(name="quality"), BranchConfig(name="arithmetic", kind="tool"))
    structure = Structure(backbone.load(models.resolve("micro").path, max_length=256), specs, FusionConfig())
    for name, value in structure.named_parameters():
        if name.startswith(("trained", "fusion")):
            torch.nn.init.normal_(value)
    path = tmp_path_factory.mktemp("structural")
    RewardModel(structure, "test", "none").save(path)
    return path


def test_a_structural_model_scores_as_a_probability(structural):
    from raylm.srm.model import RewardModel

    model = asyncio.run(reward.build(str(structural)))
    texts = ["2 + 2 = 4", "2 + 2 = 5", "none"]
    expected = [
        1 / (1 + torch.tensor(-said.score).exp()) for said in RewardModel.load(structural).score("2 + 2?", texts)
    ]
    assert [asyncio.run(model.score("2 + 2?", text)) for text in texts] == pytest.approx([float(p) for p in expected])
    assert asyncio.run(model.score("2 + 2?", " ")) == 0.0
    with pytest.raises(ValueError, match="does not fit into the context of the reward model test"):
        asyncio.run(model.score("q", "x" * 5000))
