"""/v1/score and /v1/compare."""

from __future__ import annotations

import math

from fastapi import FastAPI, Request, Response

from raylm.serve import api
from raylm.serve.reward import Prompt, Scored
from raylm.serve.routes import Served, options, reply


def add(app: FastAPI, served: Served) -> None:
    """Serve a reward service's routes."""
    limits = served.config.limits

    @app.post("/v1/score", **options("Score responses to a prompt", api.Scores))
    async def score(body: api.ScoreRequest, request: Request) -> Response:
        responses = api.as_list(body.responses)
        api.check_texts(responses, limits, "responses")
        _check_prompt(body.prompt, served)
        _, name = served.choose(request, body.model, ("reward",))
        found = await served.rewards.score(name, plain(body.prompt), responses)
        return reply(api.Scores(model=name, revision=found.revision, data=items(found)))

    @app.post("/v1/compare", **options("Which of two responses is better, and why", api.Comparison))
    async def compare(body: api.CompareRequest, request: Request) -> Response:
        responses = [body.response_a, body.response_b]
        api.check_texts(responses, limits, "response_a, response_b")
        _check_prompt(body.prompt, served)
        _, name = served.choose(request, body.model, ("reward",))
        found = await served.rewards.score(name, plain(body.prompt), responses)
        return reply(comparison(name, found))


def plain(prompt: str | list[api.Turn]) -> Prompt:
    """A prompt as reward models take it."""
    return prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]


def items(found: Scored) -> list[api.ScoreItem]:
    """Scores as they are answered."""
    return [
        api.ScoreItem(
            index=place,
            score=score.score,
            probability=probability,
            dimensions=score.dimensions,
            attribution=score.attribution,
            truncated=score.truncated,
            flags=list(score.flags),
        )
        for place, (score, probability) in enumerate(zip(found.scores, found.probabilities, strict=True))
    ]


def comparison(name: str, found: Scored) -> api.Comparison:
    """Two scores side by side; the difference of scores is the log-odds of the preference (Bradley-Terry)."""
    a, b = items(found)
    margin = a.score - b.score
    names = dict.fromkeys([*a.attribution, *b.attribution])
    reasons = {one: a.attribution.get(one, 0.0) - b.attribution.get(one, 0.0) for one in names}
    return api.Comparison(
        model=name,
        revision=found.revision,
        winner="a" if margin > 0 else "b" if margin < 0 else "tie",
        probability=1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, margin)))),
        margin=margin,
        reasons=dict(sorted(reasons.items(), key=lambda pair: -abs(pair[1]))),
        a=a,
        b=b,
    )


def _check_prompt(prompt: str | list[api.Turn], served: Served) -> None:
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    api.check_texts(texts, served.config.limits, "prompt")
