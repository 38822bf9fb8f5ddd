"""A request's prompt in the ids of every model that reads it.

A conversation is written in each model's own template, as `ivg decode` does. A completion's prompt is text
that stands as it is: no model's template is put around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ivg.errors import UserError
from ivg.models.inspection import ModelInfo
from ivg.models.plan import GuidePlan, reading_models
from ivg.models.prompts import Record, check_row, encode_prompt, encode_text, identities
from ivg.serve.asking import Prompt

_WHERE = "request"


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt, read.

    Attributes:
        record: as a record of an input file would hold it, for guides that read text.
        prompt_id: hash of its content and its number among equal ones, which with the seed decide the draws.
        ids: by model name.
    """

    record: Record
    prompt_id: str
    ids: Mapping[str, tuple[int, ...]]


class PromptReader:
    """Encodes prompts for the models of one preset.

    Args:
        base: the frozen model.
        plans: who guides, and how.
    """

    def __init__(self, base: ModelInfo, plans: Sequence[GuidePlan]) -> None:
        self._base = base
        self.infos = reading_models(base, plans)
        self._shares_ids = {info.name for plan in plans if plan.fit.route == "ids" for info in plan.models}

    def __call__(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Encode the prompts of a request.

        Raises:
            UserError: no prompt, or one that a template cannot write.
        """
        read = [self._read(prompt) for prompt in prompts]
        names = identities([record for record, _ in read])
        return [
            EncodedPrompt(record, name, {model: tuple(found) for model, found in ids.items()})
            for (record, ids), name in zip(read, names, strict=True)
        ]

    def _read(self, prompt: Prompt) -> tuple[Record, dict[str, list[int]]]:
        """Return a prompt as a record, and its ids by model name."""
        if isinstance(prompt, Mapping):
            record = check_row(prompt, _WHERE)
            return record, {i.name: encode_prompt(i.tokenizer, record, i.template) for i in self.infos}
        if isinstance(prompt, str):
            record = check_row({"prompt": prompt}, _WHERE)
            return record, {info.name: encode_text(info.tokenizer, prompt) for info in self.infos}
        self._check_ids(prompt)
        text = self._base.tokenizer.decode(prompt, skip_special_tokens=False)
        return {"prompt": text}, {info.name: self._read_ids(info, prompt, text) for info in self.infos}

    def _check_ids(self, ids: Sequence[int]) -> None:
        limit = self._base.num_embeddings
        wrong = next((i for i in ids if not 0 <= i < limit), None)
        if wrong is not None:
            raise UserError(f"prompt holds the token id {wrong}; the base has 0 to {limit - 1}")

    def _read_ids(self, info: ModelInfo, ids: Sequence[int], text: str) -> list[int]:
        """Return the base's ids as another model reads them: opened as its tokenizer opens a sequence."""
        if info.name == self._base.name:
            return list(ids)
        if info.name not in self._shares_ids:
            return encode_text(info.tokenizer, text)
        bos = self._base.tokenizer.bos_token_id
        content = list(ids[1:] if bos is not None and ids[0] == bos else ids)
        return [*opening(info), *content]


def opening(info: ModelInfo) -> list[int]:
    """Return what a model's tokenizer puts before any text: its BOS, or nothing."""
    bos = info.tokenizer.bos_token_id
    return [bos] if bos is not None and list(info.tokenizer("")["input_ids"])[:1] == [bos] else []
