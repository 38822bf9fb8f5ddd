"""Which reward judges a finished response, as a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ivg.errors import UserError
from ivg.models.prompts import Record

Reward = Callable[[Sequence[Record], Sequence[str]], list[float]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Which reward judges a finished response; exactly one of `function` and `model` is given.

    Attributes:
        function: dotted name of a callable `f(rows, responses) -> list[float]`, such as `ivg.rewards.vader`.
        model: folder or Hub name of a sequence classifier.
        revision: its Hub revision.
        template: how the classifier sees the prompt: `chat`, a format string with `{prompt}`, or unset (see
            `ivg.models.prompts`).
        label: the label whose log-odds are the reward; needed where the classifier has more than one.
        batch_size: responses per forward pass of the classifier.
        device: where the classifier runs; default: CUDA if there is one, else CPU.
        trust_remote_code: run code shipped with the classifier; otherwise it is refused.
    """

    function: str | None = None
    model: str | None = None
    revision: str | None = None
    template: str | None = None
    label: str | None = None
    batch_size: int = 32
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if (self.function is None) == (self.model is None):
            raise UserError("reward: give exactly one of a function's dotted name and a classifier's path")
        if self.batch_size < 1:
            raise UserError(f"reward batch_size is {self.batch_size}; give an integer >= 1")
        if self.function is not None and (self.label is not None or self.template is not None):
            raise UserError("reward: label and template belong to a classifier, but a function was given")
        if self.template is not None and self.template != "chat" and "{prompt}" not in self.template:
            raise UserError(
                f"reward template {self.template!r} has no '{{prompt}}'; give 'chat' or a text that has it"
            )
