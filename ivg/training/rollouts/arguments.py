"""Settings of sampling and labelling."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from accelerate import PartialState

from ivg.config import Dtype, ModelConfig, SamplingConfig
from ivg.errors import UserError
from ivg.rewards import RewardConfig
from ivg.training.arguments import as_mapping
from ivg.training.rollouts.labelling import PairStrategy

_MAX_SAMPLES = 65_536  # a block's samples are held in memory


@dataclasses.dataclass
class RolloutArguments:
    """Keys of `train/rollouts.py`."""

    model_name_or_path: str = dataclasses.field(
        metadata={"help": "The policy to sample from: a folder or Hub name."}
    )
    dataset_name: str = dataclasses.field(
        metadata={"help": "Rows with prompts: a .jsonl file, a folder saved by `datasets`, or a Hub dataset."}
    )
    output_dir: str = dataclasses.field(
        metadata={"help": "Gets completions.jsonl, preferences.jsonl and statistics.json."}
    )
    model_revision: str | None = dataclasses.field(default=None, metadata={"help": "Hub revision."})
    dtype: Dtype = dataclasses.field(default="auto", metadata={"help": "Type of the policy's weights."})
    quantization: Literal["4bit", "8bit"] | None = dataclasses.field(
        default=None, metadata={"help": "Load the policy in 4 or 8 bits through bitsandbytes."}
    )
    trust_remote_code: bool = dataclasses.field(
        default=False,
        metadata={"help": "Run code shipped with the policy or the reward model instead of refusing it."},
    )
    dataset_config: str | None = dataclasses.field(
        default=None, metadata={"help": "Configuration of a Hub dataset."}
    )
    dataset_split: str = dataclasses.field(default="train", metadata={"help": "Split to take prompts from."})
    adapter: str | None = dataclasses.field(
        default=None, metadata={"help": "How the dataset's own columns become TRL's."}
    )
    prompt_template: str | None = dataclasses.field(
        default=None,
        metadata={"help": "How the policy sees a prompt: 'chat', a format string with {prompt}, or unset."},
    )
    chat_template_kwargs: dict[str, Any] | str | None = dataclasses.field(
        default=None,
        metadata={"help": "What the chat template is told, such as {enable_thinking: false}."},
    )
    max_prompts: int | None = dataclasses.field(
        default=None, metadata={"help": "Use only the first distinct prompts, >= 1."}
    )
    num_samples: int = dataclasses.field(
        default=4, metadata={"help": "Responses per prompt, >= 1; pairs need at least 2."}
    )
    max_new_tokens: int = dataclasses.field(
        default=256, metadata={"help": "Longest response in tokens, EOS included, >= 1."}
    )
    temperature: float = dataclasses.field(default=1.0, metadata={"help": "Above 0; higher is more varied."})
    top_k: int = dataclasses.field(default=0, metadata={"help": "Keep the k likeliest tokens; 0 keeps all."})
    top_p: float = dataclasses.field(default=1.0, metadata={"help": "Nucleus mass in (0, 1]."})
    stop: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "Strings that end a response."}
    )
    seed: int = dataclasses.field(default=0, metadata={"help": "Decides every draw."})
    max_batch_rows: int = dataclasses.field(default=64, metadata={"help": "Responses sampled side by side."})
    block_size: int = dataclasses.field(
        default=64, metadata={"help": "Prompts per block; an interrupted block is sampled again."}
    )
    reward_function: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Dotted name of f(rows, responses) -> list[float], such as ivg.rewards.vader."},
    )
    reward_model: str | None = dataclasses.field(
        default=None, metadata={"help": "A sequence classifier, instead of reward_function."}
    )
    reward_revision: str | None = dataclasses.field(default=None, metadata={"help": "Its Hub revision."})
    reward_template: str | None = dataclasses.field(
        default=None, metadata={"help": "How the reward model sees a prompt."}
    )
    reward_label: str | None = dataclasses.field(
        default=None, metadata={"help": "The label whose log-odds are the reward."}
    )
    reward_batch_size: int = dataclasses.field(default=32, metadata={"help": "Responses per forward pass."})
    pairs: PairStrategy = dataclasses.field(
        default="best-worst",
        metadata={
            "help": "best-worst: one pair a prompt; all: every pair above min_margin; bradley-terry: two by "
            "two, the better one chosen with probability sigmoid(difference of rewards)."
        },
    )
    min_margin: float = dataclasses.field(
        default=0.0, metadata={"help": "How far the rewards of a pair must differ, >= 0."}
    )
    overwrite_output: bool = dataclasses.field(
        default=False, metadata={"help": "Discard what another run left in output_dir."}
    )

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature}; give a number above 0, or samples are equal")
        for name in ("block_size", "max_batch_rows", "max_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give an integer >= 1")
        if self.num_samples > _MAX_SAMPLES:
            raise UserError(f"num_samples is {self.num_samples}; give at most {_MAX_SAMPLES} a prompt")
        if not self.min_margin >= 0:
            raise UserError(f"min_margin is {self.min_margin}; give a number >= 0")

    def policy(self) -> ModelConfig:
        """Return the policy's description, on this process's device."""
        return ModelConfig(
            path=self.model_name_or_path,
            revision=self.model_revision,
            dtype=self.dtype,
            quantization=self.quantization,
            device=str(PartialState().device),
            trust_remote_code=self.trust_remote_code,
            template=self.prompt_template,
            chat_template_kwargs=as_mapping(self.chat_template_kwargs, "chat_template_kwargs"),
        )

    def sampling(self) -> SamplingConfig:
        """Return how responses are drawn."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=tuple(self.stop),
            seed=self.seed,
            num_samples=self.num_samples,
        )

    def reward(self) -> RewardConfig:
        """Return which reward scores the samples."""
        return RewardConfig(
            function=self.reward_function,
            model=self.reward_model,
            revision=self.reward_revision,
            template=self.reward_template,
            label=self.reward_label,
            batch_size=self.reward_batch_size,
            device=str(PartialState().device) if self.reward_model else None,
            trust_remote_code=self.trust_remote_code,
        )
