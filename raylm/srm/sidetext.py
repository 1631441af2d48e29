"""Side texts: a language model writes a few words on each dimension, with an adapter of its own for every branch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raylm.errors import UserError
from raylm.llm import chat, models
from raylm.srm.backbone import Prompt, as_text
from raylm.srm.cache import Count
from raylm.srm.config import BranchConfig, WriterConfig

PLAIN = "__base__"
"""How peft names the model without an adapter in a mixed batch."""


class AdapterWriter:
    """Writes the texts of all text branches; rows of one batch go through different adapters.

    source: method page, a_i from (p, r) by a small adapter on a shared base, all branches in parallel (S). Greedy
    decoding (I), so that a text's score is a function of the text.
    """

    def __init__(self, config: WriterConfig, specs: Sequence[BranchConfig], device: str = "cpu") -> None:
        """Load the language model and the adapters that branches name.

        Raises:
            UserError: the model or an adapter cannot be had, or prompts leave no room in the context.
        """
        path = models.resolve(config.model, config.revision).path
        self.config, self.tokenizer = config, models.load_tokenizer(path)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = models.load_model(path, torch.float32).to(device).eval()
        self.names = {spec.name: PLAIN for spec in specs if spec.kind == "text"}
        for spec in specs:
            if spec.kind == "text" and spec.adapter:
                self._add(spec)
        self.model.eval()

    @torch.inference_mode()
    def write(
        self,
        specs: Sequence[BranchConfig],
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        tell: Count | None = None,
    ) -> dict[str, list[str]]:
        """Side texts of all text branches, by branch, in the order of the responses; `tell` counts them."""
        own = [spec for spec in specs if spec.kind == "text"]
        asked = [
            (spec.name, chat.prompt_ids(self.tokenizer, self.ask(spec, prompt, response)))
            for spec in own
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        order = sorted(range(len(asked)), key=lambda place: len(asked[place][1]))
        said = [""] * len(asked)
        for start in range(0, len(order), self.config.batch_size):
            places = order[start : start + self.config.batch_size]
            for place, text in zip(places, self._generate([asked[place] for place in places]), strict=True):
                said[place] = text
            if tell is not None:
                tell(start + len(places), len(order))
        count = len(responses)
        return {spec.name: said[number * count : (number + 1) * count] for number, spec in enumerate(own)}

    def _generate(self, asked: Sequence[tuple[str, list[int]]]) -> list[str]:
        padded = self.tokenizer.pad({"input_ids": [ids for _, ids in asked]}, return_tensors="pt").to(self.model.device)
        options: dict[str, Any] = {"max_new_tokens": self.config.max_tokens, "do_sample": False, "temperature": None}
        if hasattr(self.model, "peft_config"):
            options["adapter_names"] = [self.names[name] for name, _ in asked]
        found = self.model.generate(**padded, **options, pad_token_id=self.tokenizer.pad_token_id)
        new = found[:, padded["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def ask(self, spec: BranchConfig, prompt: Prompt, response: str) -> list[dict[str, str]]:
        """The question for one branch as a chat; the middle of a prompt that is too long is left out.

        Raises:
            UserError: the response alone leaves no room in the context.
        """
        bounds = f" from {spec.low:g} to {spec.high:g}" if spec.low is not None and spec.high is not None else ""
        words = {"dimension": spec.name.replace("_", " "), "range": bounds}
        room, text = self.config.context - self.config.max_tokens, as_text(prompt)
        for _ in range(8):
            asked = self.config.prompt.format(prompt=text, response=response, **words)
            messages = [{"role": "user", "content": asked}]
            length = len(chat.prompt_ids(self.tokenizer, messages))
            if length <= room:
                return messages
            kept = int(len(text) * max(0.0, 1 - 1.2 * (length - room) / length))
            text = f"{text[: kept // 2]} ... {text[len(text) - kept // 2 :]}"
        raise UserError(
            f"branch {spec.name}: a response alone has more than writer.context={self.config.context} tokens; raise it"
        )

    def _add(self, spec: BranchConfig) -> None:
        from peft import PeftModel

        if not (Path(spec.adapter) / "adapter_config.json").is_file():
            raise UserError(
                f"branch {spec.name}: adapter={spec.adapter} is no LoRA adapter (adapter_config.json is missing)"
            )
        if not any(Path(spec.adapter).glob("*.safetensors")):
            raise UserError(f"branch {spec.name}: adapter={spec.adapter} holds no *.safetensors; save it as such")
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(spec.adapter, spec.name)
        else:
            self.model = PeftModel.from_pretrained(self.model, spec.adapter, adapter_name=spec.name)
        self.names[spec.name] = spec.name
