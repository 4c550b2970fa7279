"""The configuration of `fedvpa align`: a YAML file plus ``key=value``, checked like an experiment's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from fedvpa.alignment.sampling import Sampling
from fedvpa.config import Section, merged, read_overrides, read_sections, validated
from fedvpa.preferences.schema import Message, Prompt


class PolicyConfig(Section):
    """The language model that is aligned."""

    model: str | None = Field(None, description="A causal LM as in backbone.model; empty: the selector's backbone.")
    revision: str | None = Field(None, description="Hub revision of `model`.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: bfloat16; float32 on a CPU without instructions for bfloat16."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where it generates and is trained.")


class ConditioningConfig(Section):
    """How z enters it (`alignment/conditioning.py`)."""

    kind: Literal["soft-prompt", "added"] = Field(
        "added", description="soft-prompt: virtual tokens in front; added: z on every input embedding."
    )
    tokens: int = Field(1, ge=1, le=64, description="m, virtual tokens per latent; added takes one.")
    gain: float = Field(1.0, gt=0, description="Strength of the projection, in units of the embeddings' size.")


class PromptsConfig(Section):
    """Public prompts: none that a client of the selector's run holds."""

    path: str | None = Field(
        None, description="JSON Lines with `prompt`; empty: prompts of the run's data that no client holds."
    )
    subsets: tuple[str, ...] = Field(
        (), description="For a run on HH-RLHF: take prompts from these subsets of it, such as helpful-online, as well."
    )
    training: int = Field(250, ge=1, description="Prompts to train on.")
    judging: int = Field(150, ge=1, description="Other prompts, to judge on.")
    max_tokens: int = Field(
        64, ge=8, description="Longer prompts (in tokens, the dialogue's format included) stay out."
    )


class CandidatesConfig(Section):
    """Responses of the base model."""

    number: int = Field(4, ge=2, description="Candidates per prompt.")
    max_new_tokens: int = Field(96, ge=1, description="Longest response; also when the policy is judged.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    top_k: int = Field(50, ge=0, description="Sample from this many likeliest tokens; 0: from all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens of this total probability.")
    batch: int = Field(128, ge=1, description="Responses that are generated together.")
    demonstrations: tuple[tuple[str, ...], ...] = Field(
        (),
        description="Dialogues (user, assistant, user, ...) that stand before a prompt when it is answered, by turns; "
        "an empty one: the prompt alone. They bring variety; the policy never sees them.",
    )

    @model_validator(mode="after")
    def _whole(self) -> CandidatesConfig:
        if any(len(turns) % 2 for turns in self.demonstrations):
            raise ValueError("a demonstration ends with the assistant's turn")
        return self

    def before(self, number: int) -> Prompt:
        """What stands before a prompt's candidate of this number."""
        if not self.demonstrations:
            return ()
        turns = self.demonstrations[number % len(self.demonstrations)]
        return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns))


class LabelsConfig(Section):
    """Under which latents the selector labels candidates, and what becomes a preference pair."""

    prototypes: bool = Field(True, description="Label under the prototypes.")
    users: int = Field(8, ge=0, description="Label under this many seen users, inferred from their contexts.")
    context_pairs: int = Field(16, ge=1, description="Labelled pairs from which a user is inferred, at most.")
    pairs: int = Field(800, ge=1, description="Pairs to train on, in equal parts from every latent.")


class TrainingConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) of a LoRA adapter.

    The likelihood of the chosen responses is part of the loss (Pang et al. 2024, arXiv 2404.19733). Candidates that
    follow demonstrations are rare for the model without them: DPO alone makes the rejected ones rarer still, and what
    it takes from these goes to text that nobody preferred.
    """

    beta: float = Field(0.1, gt=0, description="DPO's beta.")
    sft: float = Field(
        1.0,
        ge=0,
        description="Weight of the chosen responses' mean negative log-likelihood per token beside DPO's loss.",
    )
    learning_rate: float = Field(5e-4, gt=0, description="Largest learning rate of AdamW.")
    warmup: float = Field(
        0.1, ge=0, le=1, description="Share of the steps over which it rises; then it falls linearly."
    )
    start: float = Field(
        0.2, ge=0, description="Size of what the projection of z adds before the first step, times conditioning.gain."
    )
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    batch: int = Field(16, ge=1, description="Pairs per step.")
    micro_batch: int = Field(8, ge=1, description="Pairs that are in memory together.")
    lora_rank: int = Field(16, ge=1, description="Rank of LoRA, on every linear layer of the blocks.")
    lora_alpha: float = Field(32.0, gt=0, description="LoRA's alpha.")
    checkpoint_every: int = Field(10, ge=1, description="Steps between two checkpoints.")

    @model_validator(mode="after")
    def _divides(self) -> TrainingConfig:
        if self.batch % self.micro_batch:
            raise ValueError("micro_batch must divide batch")
        return self


class JudgingConfig(Section):
    """What is measured afterwards, on the prompts for judging, against the base model's own response."""

    users: int = Field(8, ge=1, description="Unseen users of each group whose latents stand for the group.")
    context_pairs: int = Field(16, ge=1, description="Labelled pairs from which each is inferred, at most.")
    best_of: int = Field(8, ge=0, description="Also judge the selector's choice of this many base responses; 0: not.")
    best_of_prompts: int = Field(
        0, ge=0, description="Prompts on which it is judged, since it is the dearest part; 0: all."
    )
    blend: tuple[float, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), description="Points between opposite prototypes that are judged; empty: none."
    )
    blend_prompts: int = Field(60, ge=1, description="Prompts on which blends are judged.")
    bootstrap: int = Field(2000, ge=100, description="Bootstrap resamples for intervals.")


class AlignmentConfig(Section):
    """Everything that `fedvpa align` needs besides the selector's run."""

    seed: int = Field(0, ge=0, description="Everything random derives from it.")
    policy: PolicyConfig = PolicyConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    prompts: PromptsConfig = PromptsConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    labels: LabelsConfig = LabelsConfig()
    training: TrainingConfig = TrainingConfig()
    judging: JudgingConfig = JudgingConfig()

    @property
    def sampling(self) -> Sampling:
        c = self.candidates
        return Sampling(c.temperature, c.top_k, c.top_p)

    @model_validator(mode="after")
    def _consistent(self) -> AlignmentConfig:
        if self.conditioning.kind == "added" and self.conditioning.tokens != 1:
            raise ValueError("conditioning.tokens must be 1 with conditioning.kind added")
        if not self.labels.prototypes and not self.labels.users:
            raise ValueError("labels needs prototypes or users")
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_alignment(path: str | Path | None, overrides: Sequence[str] = ()) -> AlignmentConfig:
    """Reads a YAML file (none: the defaults) and applies ``key=value`` overrides; errors as in `config.load_config`."""
    tree = {} if path is None else read_sections(path)
    return validated(AlignmentConfig, merged(tree, read_overrides(overrides)), file=path)
