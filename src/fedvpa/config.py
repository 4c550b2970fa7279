"""The one typed experiment configuration.

A configuration is a YAML file plus ``key=value`` overrides. Every field has a default, a description (from which the
reference page is made) and a type; unknown keys are refused with the nearest valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedvpa.errors import UserError

CONTEXT_SIZES = (0, 1, 2, 4, 8, 16)
PEOPLE_SOURCES = ("table", "jsonl", "polis", "jester", "arguments", "prism")
"""Sources of what real people judged (`preferences.reading`); jsonl is another name of table."""
SOURCES = ("synthetic", "hh-attributes", "hh-objectives", "hh-subsets", "ultrafeedback-p", *PEOPLE_SOURCES)
METHODS = (
    "fedvpa-laplace",
    "fedvpa-gp",
    "fedvpl",
    "fedvpl+prior",
    "fedvpl+ortho",
    "vmtl",
    "fedbt",
    "fedbiscuit",
    "fedpdpo",
    "gumbel-mpnn",
    "pluralllm",
    "votes-mean",
    "feddpo",
    "lore",
    "mrm",
    "pal",
    "item-factors",
    "local",
    "central-vpl",
    "fedvpa-gp+labels",
    "oracle",
    "oracle-clients",
)
METHOD_GROUP = "fedvpa.methods"
"""Entry points under which an installed package brings methods of its own (docs/add-a-method.md)."""
LAPLACE_METHODS = ("fedvpa-laplace", "votes-mean")
"""Methods whose rounds and optimiser the section laplace says."""
LORA_METHODS = ("fedbt", "fedbiscuit")
"""Methods that `backbone.train: lora` makes train the language model."""
FAULTS = (
    "slow",
    "drop-out",
    "crash",
    "stale",
    "nan",
    "inf",
    "shape",
    "huge",
    "label-flip",
    "scaled",
    "sign-flip",
    "forged-posterior",
)
_SOURCE_KEYS = ("path", "subsets", "groups", "group_shares", "split", "columns", "items", "min_gap")
TABLE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst")
"""What the name of a data file ends in, where it is given in place of a configuration."""
EVERYBODY = 100_000
"""More clients than a table has people: take all."""


S = TypeVar("S", bound=BaseModel)


def known_methods() -> tuple[str, ...]:
    """Names that ``method.name`` may have: `METHODS`, and those of installed packages, which are not imported."""
    return (*METHODS, *sorted(entry_points(group=METHOD_GROUP).names - set(METHODS)))


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class ColumnsConfig(Section):
    """Names of a table's columns, where they are not among the usual ones (`preferences.columns`)."""

    user: str | None = Field(None, description="Who judged; usual: user_id, annotator, worker, voter, ...")
    prompt: str | None = Field(None, description="What the responses answer, text or messages.")
    chosen: str | None = Field(None, description="The preferred response.")
    rejected: str | None = Field(None, description="The other response.")
    a: str | None = Field(None, description="One response, where `preferred` says which one was preferred.")
    b: str | None = Field(None, description="The other response.")
    preferred: str | None = Field(None, description="Which was preferred: a, b, 1, 2, first, second; equal or tie.")
    item: str | None = Field(None, description="The id of an item (a response that is judged alone).")
    first: str | None = Field(None, description="The id of one item of a choice.")
    second: str | None = Field(None, description="The id of the other item.")
    rating: str | None = Field(None, description="A number; or a vote: 1 yes, -1 no, 0 pass, true, false.")
    text: str | None = Field(None, description="The item's text (a response, a statement).")
    label: str | None = Field(None, description="Whether the user likes `text`, true or false (TRL's unpaired rows).")
    margin: str | None = Field(None, description="Strength of a choice, positive.")
    score_chosen: str | None = Field(
        None, description="Score of the chosen response; with score_rejected the strength."
    )
    score_rejected: str | None = Field(None, description="Score of the rejected response.")
    group: str | None = Field(None, description="The user's true group, for evaluation only.")


class DataConfig(Section):
    name: Literal[SOURCES] = Field("synthetic", description="Where the preference pairs come from.")  # type: ignore[valid-type]
    path: str | None = Field(
        None,
        description="A file or folder in the source's layout, or a dataset id on the Hub. table: JSON Lines, JSON, "
        "CSV, TSV (each also .gz, .zst), Parquet, or a folder of `datasets`. polis: also bowling-green, which is "
        "shipped. Empty: the source's own default (polis: bowling-green; hh-*: $FEDVPA_HH_RLHF, ./data/hh-rlhf, "
        "../shared/data/hh-rlhf, Anthropic/hh-rlhf on the Hub).",
    )
    subsets: tuple[str, ...] | None = Field(None, description="hh-*: subsets to read, such as helpful-base.")
    groups: tuple[str, ...] | None = Field(None, description="Groups of users, by name; empty: the source's default.")
    group_shares: tuple[float, ...] | None = Field(
        None, description="Share of the clients in each group; empty: equal shares."
    )
    pairs_per_client: int = Field(16, ge=2, description="Training pairs that one client holds, at most.")
    label_noise: float = Field(0.0, ge=0.0, lt=0.5, description="Probability that a training label is exchanged.")
    user_column: str = Field(
        "user_id", min_length=1, description="table: the column that names a row's user; as data.columns.user."
    )
    columns: ColumnsConfig = ColumnsConfig()
    items: str | None = Field(
        None, description="table: a table with item, prompt and text; empty: items.* beside the table, where needed."
    )
    min_gap: float = Field(
        0.0, ge=0, description="Two ratings make a pair if they are at least this far apart; 0: any difference."
    )
    min_votes: int = Field(
        8,
        ge=1,
        description="Held-out people gave at least so many agreements and so many disagreements (or twice as many "
        "ratings, or as many choices); people with fewer only train.",
    )
    order: Literal["random", "chosen-first"] = Field(
        "random",
        description="Which response is a: random, or always the one that the user prefers, which gives labels away "
        "to a selector that is not antisymmetric (for the study of leaks only).",
    )
    on_invalid: Literal["error", "skip"] = Field(
        "error", description="What an invalid row does; skipped rows are counted."
    )

    @field_validator("group_shares")
    @classmethod
    def _shares(cls, v: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if v is not None and (any(s <= 0 for s in v) or abs(sum(v) - 1) > 1e-6):
            raise ValueError("shares must be positive and sum to 1")
        return v


class BackboneConfig(Section):
    model: str | tuple[str, ...] = Field(
        "smollm2-135m-instruct",
        description="A causal LM or a sentence encoder (a folder or Hub id with modules.json, as the "
        "sentence-transformers library writes it): Hub id, local folder, or one of the embedded smollm2-135m-instruct "
        "(causal) and all-minilm-l6-v2 (sentences). A list: the features of each, one after another.",
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit) of a single model.")
    layer: int | float = Field(
        0.5,
        description="Causal LM: layer whose output is used: an index (1 is the first block's output), or a share of "
        "the depth.",
    )
    pooling: Literal["mean", "last"] = Field(
        "mean", description="Causal LM: pooling over the response's tokens. A sentence encoder has its own."
    )
    text: Literal["response", "prompt+response"] = Field(
        "response",
        description="Sentence encoder: what it reads. response: the response alone; the prompt is the same on both "
        "sides of a pair, and one that all items share carries no information. prompt+response: the prompt's turns "
        "and the response, with a blank line between them.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="auto: bfloat16; float32 for a sentence encoder, and on a CPU without instructions for bfloat16.",
    )
    max_tokens: int = Field(
        1024,
        ge=16,
        description="Causal LM: longest prompt plus response. Of longer ones a response keeps its first tokens and a "
        "prompt its last, each at least half or all of it. A sentence encoder keeps its own limit.",
    )
    batch_tokens: int = Field(4096, ge=64, description="Tokens in one batch, padding included.")
    choice_logits: bool = Field(
        False, description="Single causal LM: compute the base choice logits l0 (Eq. 2); about three times the cost."
    )
    train: Literal["frozen", "lora"] = Field(
        "frozen",
        description="What fedbt and fedbiscuit train: lora is LoRA on the language model, as in their paper (choice "
        "prompt, answer tokens A and B), with the settings of the section lora; frozen a selector on its features. "
        "feddpo always trains the language model, every other method never.",
    )

    @field_validator("layer")
    @classmethod
    def _layer(cls, v: int | float) -> int | float:
        if (isinstance(v, float) and not 0 < v <= 1) or (isinstance(v, int) and v < 1):
            raise ValueError("a share of the depth in (0, 1], or a layer index from 1")
        return v

    @field_validator("model")
    @classmethod
    def _model(cls, v: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(v, str):
            return v
        if not v or len(set(v)) < len(v):
            raise ValueError("one model or more, each once")
        return v[0] if len(v) == 1 else v

    @model_validator(mode="after")
    def _single(self) -> BackboneConfig:
        if len(self.models) > 1 and self.revision is not None:
            raise ValueError("backbone.revision needs a single backbone.model")
        if len(self.models) > 1 and self.choice_logits:
            raise ValueError("backbone.choice_logits needs a single backbone.model, a causal LM")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The models, whether there is one or a list of them."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def single_model(self) -> str:
        """The only model, for what needs one.

        Raises:
            UserError: there are several.
        """
        if not isinstance(self.model, str):
            raise UserError("a single model is needed, not a list", "name one", field="backbone.model")
        return self.model


class LoRAConfig(Section):
    """How `feddpo`, and with `backbone.train: lora` `fedbt` and `fedbiscuit`, train the language model.

    Defaults are those of the authors' code: OpenFedLLM's DPO script for `feddpo`, FedBiscuit's TL;DR script for the
    other two. LoRA itself is the same in both. What stands here takes the place of the keys of the same names in the
    section federation, which are for selectors: a local step costs about 10^4 times as much here.
    """

    rank: int = Field(8, ge=1, description="Rank of the adapter (both scripts).")
    alpha: float = Field(16.0, gt=0, description="The adapter's update is scaled by alpha / rank (both scripts).")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapter's input (both scripts).")
    targets: tuple[str, ...] = Field(
        (), description="Linear layers with an adapter, by the end of their names; empty: PEFT's choice for the model."
    )
    beta: float = Field(0.1, gt=0, description="feddpo: beta of DPO (OpenFedLLM).")
    max_tokens: int = Field(
        512,
        ge=16,
        description="Longest prompt plus response (OpenFedLLM), at most backbone.max_tokens. For feddpo a prompt keeps "
        "its last tokens, at most half of it, and a response its first.",
    )
    rounds: int | None = Field(None, ge=1, description="Rounds; empty: federation.rounds.")
    local_steps: int | None = Field(
        None, ge=1, description="Local steps per round; empty: 10 for feddpo (OpenFedLLM), 30 else (FedBiscuit)."
    )
    batch_pairs: int | None = Field(
        None, ge=2, description="Pairs in a local step; empty: 16 for feddpo (OpenFedLLM), 4 else (FedBiscuit: 2 x 2)."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="AdamW's in the first round; empty: 5e-4 for feddpo (OpenFedLLM), 1e-5 else."
    )
    final_learning_rate: float | None = Field(
        None,
        ge=0,
        description="Where the learning rate falls to over the rounds, along a cosine; empty: 1e-5 (for fedbt and "
        "fedbiscuit it does not fall).",
    )
    gradient_norm: float = Field(
        1.0, ge=0, description="Largest norm of a step's gradient (transformers' default); 0: none."
    )
    server_optimizer: Literal["average", "momentum", "adam"] = Field(
        "average", description="Server optimiser; average with rate 1 is FedAvg."
    )
    server_learning_rate: float = Field(1.0, gt=0, description="Server learning rate.")


_FEDBISCUIT = {"local_steps": 30, "batch_pairs": 4, "learning_rate": 1e-5, "final_learning_rate": 1e-5}
_LORA_DEFAULTS = {
    "feddpo": {"local_steps": 10, "batch_pairs": 16, "learning_rate": 5e-4, "final_learning_rate": 1e-5},
    "fedbt": _FEDBISCUIT,
    "fedbiscuit": _FEDBISCUIT,
}


class ModelConfig(Section):
    latent_dim: int = Field(32, ge=1, description="d, the dimension of the latent z.")
    hidden_dim: int = Field(256, ge=1, description="h, the width of the feature map and of the difference embedding.")
    encoder_dim: int = Field(128, ge=1, description="Hidden width of the variational encoder.")
    feature_dropout: float = Field(
        0.7, ge=0, lt=1, description="Share of the input features left out per local step (ours)."
    )
    pooling: Literal["poe", "mean", "attention"] = Field("poe", description="How a context's experts become q(z|C).")
    odd_encoder: bool = Field(True, description="Experts odd in the label (ours); false: the plain network of VPL.")
    residual: Literal["content", "bias"] = Field(
        "content", description="content: <W z + w0, d> (ours); bias: the paper's residual on z alone."
    )
    max_log_var: float = Field(0.0, description="Cap of the posterior's log variance.")


class MethodConfig(Section):
    name: str = Field(
        "fedvpa-laplace",
        description=f"The method: {', '.join(METHODS)}; or one that an installed package brings.",
    )
    beta: float = Field(0.01, ge=0, description="Weight of the KL to the prior.")
    beta_warmup: float = Field(0.01, ge=0, description="Largest beta before prior_start (ours); inf: no warm-up.")
    lambda_: float = Field(0.1, ge=0, description="Weight of the orthogonal loss (lambda in the paper).")
    gamma: float = Field(0.1, ge=0, description="Weight of the prototypes' separation inside the orthogonal loss.")
    tau: float = Field(1.0, gt=0, description="Temperature of the Gumbel-Softmax weights.")
    tau_final: float | None = Field(
        None, gt=0, description="tau in the last round, reached linearly; empty: tau throughout (vmtl: half of tau)."
    )
    pi_learning_rate: float = Field(2.0, ge=0, description="Step of log pi along the KL's gradient, with local SGD.")
    samples: int = Field(4, ge=1, description="S, posterior samples per step.")
    prototypes: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="M; auto: from 2 to 8, by the silhouette of the clients' posterior means after the warm-up (ours); "
        "empty: the number of groups where known, else 4.",
    )
    kappa: float = Field(5.0, gt=0, description="Row norm of the prototypes (the paper's scale s).")
    prior_weights: Literal["gumbel", "uniform", "samples"] = Field("gumbel", description="Mixture weights (Eq. 8).")
    kl: Literal["mc", "bound", "moment"] = Field("mc", description="Estimator of the KL to the mixture (Eq. 7).")
    prior_floor: float = Field(0.5, ge=0, description="tau0^2, variance added to each prior component; 0 in the paper.")
    prior_defensive: float = Field(0.05, ge=0, lt=1, description="Weight of the N(0, I) component; 0 in the paper.")
    prior_start: float = Field(0.5, ge=0, le=1, description="Share of the rounds before the mixture prior begins.")
    prior_components: int = Field(
        0,
        ge=0,
        description="K, Gaussians to which the server compresses the clients' posteriors for the prior (ours), so that "
        "the download does not grow with the clients; 0: every posterior is a component.",
    )
    posterior_age: int = Field(
        0,
        ge=0,
        description="Rounds after which the server forgets a posterior that was not uploaded again; 0: never.",
    )
    ortho: Literal["ours", "paper"] = Field(
        "ours", description="Orthogonal loss: one-sided on the mean, or Eq. 9 as written."
    )
    ortho_start: float = Field(0.5, ge=0, le=1, description="Share of the rounds before clustering and its loss begin.")
    cluster_balance: Literal["equal", "bounded", "none"] = Field("bounded", description="Sizes of the clusters.")
    expert_evidence: float = Field(
        0.2, ge=0, description="Weight of the encoder's evidence in mixture inference (ours); 0: likelihood alone."
    )
    identification: float = Field(
        0.0, ge=0, description="Weight, inside the cluster loss, of naming the own cluster from the context (ours)."
    )
    cluster_loss: float = Field(
        3.0, ge=0, description="Weight of the fit under the own cluster's prototype (ours); 0 in the paper."
    )
    mixture_loss: float = Field(
        1.0, ge=0, description="Weight of the mixture predictive on the query (ours); 0 in the paper."
    )
    selectors: int = Field(3, ge=1, description="fedbiscuit: U, the number of selectors.")
    selector_warmup: float = Field(
        0.09, ge=0, le=1, description="fedbiscuit: share of the rounds in which each selector is warmed up, in turn."
    )
    regroup_every: int = Field(50, ge=1, description="fedbiscuit: rounds between two groupings of the clients.")
    selector_holdout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="fedbiscuit: share of a client's pairs that measure selectors and never train; 0: all do both.",
    )
    head_learning_rate: float = Field(
        1.0, gt=0, description="fedpdpo: learning rate of the private heads, with local SGD."
    )
    bases: int = Field(8, ge=1, description="lore, mrm: number of base rewards that people's rewards are made of.")
    ridge: float = Field(10.0, gt=0, description="lore: ridge of a person's weights.")
    inner_steps: int = Field(5, ge=1, description="mrm: gradient steps from the start to a person.")
    inner_rate: float = Field(0.3, gt=0, description="mrm: learning rate of these steps.")
    ideal_points: int = Field(8, ge=1, description="pal: K, number of prototypes.")
    factors: int = Field(8, ge=1, description="item-factors: dimensions of items and people.")
    factor_ridge: float = Field(3.0, gt=0, description="item-factors: ridge of items' and people's factors.")
    edge_sharpness: float = Field(
        3.0, ge=0, description="gumbel-mpnn: how strongly edges depend on whether posteriors agree; 0: not at all."
    )
    attention_layers: int = Field(2, ge=1, description="pluralllm: layers of the transformer.")
    attention_width: Literal[32, 64, 128, 256] = Field(64, description="pluralllm: width of its tokens, of 4 heads.")
    attention_rounds: int = Field(
        900, ge=1, description="pluralllm: rounds, in the place of federation.rounds, of which it needs more."
    )
    second_hop: float = Field(0.5, ge=0, le=1, description="gumbel-mpnn: share of the second hop in the weights.")

    @field_validator("name")
    @classmethod
    def _known(cls, v: str) -> str:
        if v not in METHODS and v not in (known := known_methods()):
            raise PydanticCustomError("literal_error", "unknown method", {"expected": ", ".join(known)})
        return v


class LaplaceConfig(Section):
    """`fedvpa-laplace` (docs/method.md). Its rounds and optimiser stand here and not in the section federation: a round
    of it is one gradient of a whole likelihood, not several local steps."""

    rounds: int = Field(300, ge=1, description="Rounds.")
    learning_rate: float = Field(
        5e-4,
        gt=0,
        description="Rate of the server's Adam for few judgements, up to four times as much for many; it falls to 0.",
    )
    latent_dim: int = Field(16, ge=1, description="d, the dimension of the latent z (without the threshold).")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of the input features left out in a round.")
    samples: int = Field(4, ge=1, description="S, posterior samples.")
    prior_start: float = Field(0.07, ge=0, le=1, description="Share of the rounds with N(0, I) before EM on the prior.")
    components: int = Field(8, ge=1, description="K, components of the mixture prior.")
    components_start: float = Field(0.5, ge=0, le=1, description="Share of the rounds with one Gaussian.")
    floor: float = Field(0.01, gt=0, description="Least variance of a component.")
    error: float = Field(
        0.0, ge=0, lt=0.5, description="Share of judgements given the wrong way round, where EM begins; 0: none, fixed."
    )


class FederationConfig(Section):
    clients: int = Field(40, ge=1, description="Training clients (the seen users).")
    unseen_clients: int = Field(40, ge=0, description="Users that never take part, for reporting.")
    validation_clients: int = Field(20, ge=0, description="Users that never take part, for every choice.")
    sampled_clients: int = Field(10, ge=1, description="Clients that take part in a round.")
    context_pairs: int = Field(
        8, ge=1, description="Context pairs at training time (the largest size if varied) and in tables."
    )
    rounds: int = Field(300, ge=1, description="Communication rounds (of fedvpa-laplace: laplace.rounds).")
    vary_context: bool = Field(True, description="Context sizes in training vary from 1 to context_pairs (ours).")
    local_steps: int = Field(2, ge=1, description="Local optimiser steps per round.")
    batch_pairs: int = Field(64, ge=2, description="Pairs of a client in one local step, context and query together.")
    local_optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="Local optimiser. AdamW at the clients normalises away what few users ask for."
    )
    learning_rate: float = Field(0.1, gt=0, description="Learning rate of the local optimiser.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the local optimiser, on matrices.")
    server_optimizer: Literal["average", "momentum", "adam"] = Field(
        "adam", description="Server optimiser (Reddi et al. 2021)."
    )
    server_learning_rate: float = Field(1e-3, gt=0, description="Server learning rate; 1 with average is FedAvg.")
    server_decay: float = Field(
        0.4, ge=0, le=1, description="Share of the rounds, at the end, over which the server's rate falls to nothing."
    )
    server_weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay of the server's step, on matrices."
    )
    server_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum (momentum) or beta1 (adam).")
    aggregation: Literal["mean", "median", "trimmed-mean", "krum"] = Field(
        "mean", description="How the clients' changes become one; all but mean withstand some that lie."
    )
    byzantine: float = Field(
        0.2, gt=0, lt=0.5, description="Share of a round's clients that may lie: trimmed at each end, and Krum's f."
    )
    engine: Literal["vectorized", "loop"] = Field(
        "vectorized", description="All sampled clients at once, or one after another."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the backbone runs; training is on the CPU."
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of training.")


class EvaluationConfig(Section):
    context_sizes: tuple[int, ...] = Field(
        CONTEXT_SIZES, description="Context sizes; 0, 1, 2, 4, 8, 16 are always among them."
    )
    protocol: Literal["honest", "pair-leak"] = Field(
        "honest",
        description="honest: labels of a query never reach its latent; pair-leak reproduces the leaking protocol.",
    )
    queries: Literal["by-prompt", "known-items", "new-items"] = Field(
        "by-prompt",
        description="What people's queries are about: prompts that nobody trains on; items that others judged but that "
        "person's context does not have; or items that stand in no training judgement and no context at all.",
    )
    matched: float = Field(
        0.1,
        gt=0,
        description="Two items are about equally popular if the shares of training people for them differ by less.",
    )
    queries_per_user: int = Field(60, ge=1, description="Queries of one person, at most, drawn at random.")
    every: int = Field(10, ge=1, description="Rounds between two evaluations on validation clients.")
    bootstrap: int = Field(2000, ge=100, description="Bootstrap resamples for intervals.")

    @field_validator("context_sizes")
    @classmethod
    def _sizes(cls, v: tuple[int, ...]) -> tuple[int, ...]:
        if any(c < 0 for c in v):
            raise ValueError("context sizes are not negative")
        return tuple(sorted({*v, *CONTEXT_SIZES}))


class NetworkConfig(Section):
    """Training over a network (`fedvpa.network`)."""

    timeout: float = Field(600.0, gt=0, description="Seconds that a round waits for its clients' replies.")
    min_clients: int = Field(1, ge=1, description="Sound uploads without which a round is asked again.")
    retries: int = Field(3, ge=0, description="How often a round is asked again before training stops.")
    min_nodes: int = Field(1, ge=1, description="Nodes with users that must be there before training begins.")
    wait: float = Field(600.0, gt=0, description="Seconds to wait for them.")
    secure_aggregation: bool = Field(
        False, description="Refused: Flower's SecAgg+ does not hide an upload well enough yet (docs/deploy.md)."
    )


class FaultsConfig(Section):
    """Faults that the vectorised engine injects into clients' uploads (`federation.faults`)."""

    kinds: tuple[Literal[FAULTS], ...] = Field((), description="What goes wrong; a faulty client has one of them.")  # type: ignore[valid-type]
    clients: float = Field(0.2, ge=0, le=1, description="Share of the training clients that are faulty.")
    rate: float = Field(1.0, gt=0, le=1, description="Probability that a faulty client's upload in a round is faulty.")
    scale: float = Field(
        10.0,
        gt=0,
        description="Factor of scaled and sign-flipped updates, and distance of a forged posterior in units "
        "of the standard normal.",
    )


class DefenceConfig(Section):
    """Which uploads the server takes (`federation.declared`, `federation.robust`); over a network it always rejects."""

    reject: bool = Field(
        False, description="Reject uploads that are not finite, of another shape or beyond the bounds, and go on."
    )
    max_update_norm: float = Field(1e3, gt=0, description="Largest norm of a client's change of the parameters.")
    max_posterior_norm: float = Field(1e3, gt=0, description="Largest norm of a client's posterior mean.")
    max_pairs: int = Field(
        10**7,
        ge=1,
        description="Most training pairs that a client may announce; its weight grows with them.",
    )
    update_outlier: float = Field(
        0.0, ge=0, description="Reject changes whose norm is more than this many times the round's median; 0: none."
    )
    posterior_outlier: float = Field(
        0.0,
        ge=0,
        description="Reject posteriors that lie further than this from the coordinate-wise median of all, in units of "
        "the median absolute deviation; 0: none.",
    )


class PrivacyConfig(Section):
    """Client-level differential privacy (`federation/privacy.py`); off unless something is clipped."""

    clip: float | None = Field(
        None, gt=0, description="C, largest norm of a client's change theta_i - theta; empty: no clipping."
    )
    noise: float = Field(0.0, ge=0, description="sigma, deviation of the noise on the changes' sum, in units of C.")
    posterior_clip: float | None = Field(
        None, gt=0, description="Largest norm of a client's posterior statistics (mubar, sbar^2 - 1) together."
    )
    posterior_noise: float = Field(
        0.0, ge=0, description="Deviation of the noise on each client's statistics, in units of posterior_clip."
    )
    moments_clip: float | None = Field(
        None, gt=0, description="Largest norm of a response's features in the moments of round 0."
    )
    moments_noise: float = Field(
        0.0, ge=0, description="Deviation of the noise on the moments' sum, in units of moments_clip."
    )
    delta: float | None = Field(None, gt=0, lt=1, description="delta of the account; empty: clients^-1.1.")
    secret_noise: bool = Field(
        False,
        description="Noise and sampled clients from the operating system's randomness instead of `seed`; needed in "
        "earnest, and not reproducible.",
    )

    @model_validator(mode="after")
    def _clipped(self) -> PrivacyConfig:
        for noise, clip in (
            ("noise", "clip"),
            ("posterior_noise", "posterior_clip"),
            ("moments_noise", "moments_clip"),
        ):
            if getattr(self, noise) > 0 and getattr(self, clip) is None:
                raise ValueError(f"{noise} without {clip} protects nothing: give {clip} too")
        return self

    @property
    def on(self) -> bool:
        """Whether anything is clipped."""
        return any(c is not None for c in (self.clip, self.posterior_clip, self.moments_clip))


class OutputConfig(Section):
    checkpoint_every: int = Field(25, ge=1, description="Rounds between two checkpoints.")
    cache: str | None = Field(None, description="Cache folder; empty: $FEDVPA_CACHE or ~/.cache/fedvpa.")
    tensorboard: bool = Field(True, description="Write TensorBoard events.")


class ExperimentConfig(Section):
    """The whole configuration of one run (`fedvpa config FILE` prints it resolved)."""

    seed: int = Field(0, ge=0, description="Everything random derives from it.")
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    lora: LoRAConfig = LoRAConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    laplace: LaplaceConfig = LaplaceConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    network: NetworkConfig = NetworkConfig()
    faults: FaultsConfig = FaultsConfig()
    defence: DefenceConfig = DefenceConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        f, m = self.federation, self.method
        if m.selectors * m.selector_warmup > 1:
            raise ValueError(
                f"method.selectors ({m.selectors}) times method.selector_warmup ({m.selector_warmup}) exceeds 1, "
                "all of the rounds"
            )
        if self.privacy.clip is not None and f.aggregation != "mean":
            raise ValueError("federation.aggregation must be mean with privacy.clip: noise is added to a sum")
        if self.privacy.clip is not None and self.defence.update_outlier:
            raise ValueError(
                "defence.update_outlier must be 0 with privacy.clip: whom a median leaves out depends on everybody's "
                "unprotected change, which the account does not cover"
            )
        if self.trains_language_model and len(self.backbone.models) > 1:
            raise ValueError(f"method {m.name} trains the language model and needs a single backbone.model")
        if f.sampled_clients > f.clients:
            raise ValueError(
                f"federation.sampled_clients ({f.sampled_clients}) exceeds federation.clients ({f.clients})"
            )
        return self

    @property
    def trains_language_model(self) -> bool:
        """Whether the method trains the language model itself, and not a selector on its features."""
        return self.method.name == "feddpo" or (self.backbone.train == "lora" and self.method.name in LORA_METHODS)

    def for_method(self, name: str) -> ExperimentConfig:
        """The configuration with which the method `name` is trained.

        For `LAPLACE_METHODS` the section laplace has taken the place of what the section federation says about rounds
        and optimisers; for `pluralllm`, `method.attention_rounds` that of its rounds. For a method that trains the
        language model, the section lora, with its defaults filled in, has taken the place of what the section
        federation says about steps and optimisers, and clients train one after another. Calling it twice changes
        nothing more.
        """
        config = self.model_copy(update={"method": self.method.model_copy(update={"name": name})})
        if name in LAPLACE_METHODS:
            own: dict[str, Any] = {
                "rounds": self.laplace.rounds,
                "server_learning_rate": self.laplace.learning_rate,
            }
            own |= {"server_optimizer": "adam", "server_decay": 1.0, "server_weight_decay": 0.0, "local_steps": 1}
            return config.model_copy(update={"federation": config.federation.model_copy(update=own)})
        if name == "pluralllm":
            own = {"rounds": self.method.attention_rounds}
            return config.model_copy(update={"federation": config.federation.model_copy(update=own)})
        if not config.trains_language_model:
            return config
        given = {k: v for k, v in config.lora.model_dump().items() if v is not None}
        lora = LoRAConfig.model_validate({**_LORA_DEFAULTS[name], "rounds": config.federation.rounds, **given})
        same = ("rounds", "local_steps", "batch_pairs", "learning_rate", "server_optimizer", "server_learning_rate")
        federation = {k: getattr(lora, k) for k in same} | {
            "local_optimizer": "adamw",
            "weight_decay": 0.0,
            "server_decay": 0.0,
            "server_weight_decay": 0.0,
            "engine": "loop",
        }
        return config.model_copy(update={"lora": lora, "federation": config.federation.model_copy(update=federation)})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_config(path: str | Path) -> Path:
    """A file as it was named; where there is none, the shipped one of that name: ``jsonl``, ``configs/jsonl.yaml``."""
    path = Path(path)
    name = path.name.removesuffix(".yaml")
    named = not path.is_file() and path.parent in (Path(), Path("configs"), Path("studies"), Path("configs/studies"))
    return shipped_configs().get(name, path) if named else path


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name; in a checkout they are in ``configs/``."""
    here = Path(__file__).parent
    folder = next((f for f in (here / "configs", here.parents[1] / "configs") if f.is_dir()), here / "configs")
    return {f.stem: f for f in sorted((*folder.glob("studies/*.yaml"), *folder.glob("*.yaml")))}


def read_yaml(path: str | Path, what: str, remedy: str) -> Any:
    """What a YAML file holds.

    Args:
        what, remedy: name the file's kind, and what to do where there is none.

    Raises:
        UserError: there is no such file, or it is not YAML (with the line).
    """
    path = find_config(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, shipped_configs(), n=1)
        raise UserError(f"no such {what}", f"did you mean {near[0]}?" if near else remedy, file=path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError("not a text file", "give a YAML file", file=path) from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise UserError(f"not valid YAML ({getattr(e, 'problem', e)})", file=path, line=line) from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads a YAML file and applies ``key=value`` overrides.

    If an override changes ``data.name``, the file's keys of the other source (path, subsets, groups, ...) are ignored.
    A data file or folder (`is_data`) in place of the YAML file is read with all its people, see `_for_table`.

    Raises:
        UserError: a missing or malformed file, an unknown key (with the nearest valid one) or a value out of range.
    """
    path = find_config(path)
    tree = _for_table(path) if is_data(path) else read_sections(path)
    patch = read_overrides(overrides)
    data, new = tree.get("data") or {}, patch.get("data") or {}
    if isinstance(data, dict) and isinstance(new, dict) and new.get("name", data.get("name")) != data.get("name"):
        tree = {**tree, "data": {k: v for k, v in data.items() if k not in _SOURCE_KEYS}}
    return parse_config(merged(tree, patch), file=path)


def is_data(path: str | Path) -> bool:
    """Whether a path names data (a folder, or a file that is called like a table or begins like one), not YAML."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in TABLE_ENDINGS:
        return True
    if path.suffix.lower() in (".yaml", ".yml") or not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(4).startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b'{"', b"[{"))


def _for_table(path: str | Path) -> dict[str, Any]:
    """The defaults for a table of people: everybody takes part or is held out; the models that measure best."""
    everybody = {f"{population}clients": EVERYBODY for population in ("", "unseen_", "validation_")}
    return {
        "data": {"name": "table", "path": str(path), "pairs_per_client": 40},
        "backbone": {"model": ["smollm2-135m-instruct", "all-minilm-l6-v2"]},
        "federation": {**everybody, "sampled_clients": 50},
    }


def read_sections(path: str | Path) -> dict[str, Any]:
    """A configuration file as a nested mapping; see `load_config` for the errors."""
    tree = read_yaml(path, "configuration", "see the files in configs/")
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError("not a mapping of sections", "see the files in configs/", file=path)
    return tree


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts as a nested mapping; see `load_config` for the errors.

    The value of a key that is a text (a path, a name of a column) is that text, whatever signs are in it. Every other
    value is read as YAML.
    """
    patch: dict[str, Any] = {}
    for item in overrides:
        key, found, value = item.partition("=")
        if not found:
            raise UserError(f"override {item!r} has no value", "write key=value", field=item)
        *sections, last = key.split(".")
        place = patch
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"{section} is given a value and keys of its own", "leave one of them out", field=key)
        place[last] = _text(value) if _is_text(key, value) else _value(key, value)
    return patch


def _is_text(key: str, value: str) -> bool:
    """Whether a key of `ExperimentConfig` takes a text; a value in brackets may also be a list, where it takes both."""
    section: Any = ExperimentConfig
    *sections, last = key.split(".")
    for name in sections:
        section = section.model_fields[name].annotation if name in getattr(section, "model_fields", {}) else None
    kind = section.model_fields[last].annotation if last in getattr(section, "model_fields", {}) else None
    kinds = {kind, *get_args(kind)}
    return str in kinds and not (value.startswith("[") and any(get_origin(k) is tuple for k in kinds))


def _text(value: str) -> str | None:
    """A text without the quotation marks around it; nothing, or null, for none."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return None if value in ("", "null", "~") else value


def _value(key: str, value: str) -> Any:
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as e:
        problem = f"value {value!r} not understood ({str(e).splitlines()[0]})"
        raise UserError(problem, "write key=value", field=key) from None
    assert isinstance(found, dict)
    return found["value"]


def merged(tree: dict[str, Any], patch: dict[str, Any]) -> Any:
    """A nested mapping with another one laid over it."""
    found = dict(tree)
    for key, value in patch.items():
        below = found.get(key)
        found[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return found


def absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with the files and folders that it names as absolute paths, so that a run that keeps it can go
    on, or be evaluated, from another folder. What is not there under its name (an id on the Hub) stays as it is."""

    def absolute(name: str | None) -> str | None:
        path = None if name is None else Path(name).expanduser()
        return str(path.absolute()) if path is not None and path.exists() else name

    models = tuple(str(absolute(m)) if "/" in m or m.startswith((".", "~")) else m for m in config.backbone.models)
    data = config.data.model_copy(update={k: absolute(getattr(config.data, k)) for k in ("path", "items")})
    backbone = config.backbone.model_copy(update={"model": models[0] if len(models) == 1 else models})
    cache = config.output.cache and str(Path(config.output.cache).expanduser().absolute())
    output = config.output.model_copy(update={"cache": cache})
    return config.model_copy(update={"data": data, "backbone": backbone, "output": output})


def parse_config(tree: Any, file: str | Path | None = None) -> ExperimentConfig:
    """Validates a nested mapping; see `load_config` for the errors."""
    return validated(ExperimentConfig, tree, file)


def validated(section: type[S], tree: Any, file: str | Path | None = None) -> S:
    """A nested mapping as a configuration of some kind; see `load_config` for the errors."""
    try:
        return section.model_validate(tree)
    except ValidationError as e:
        raise _explain(e, file, section) from None


def valid_keys(section: type[BaseModel] = ExperimentConfig, prefix: str = "") -> list[str]:
    """All dotted keys, for suggestions and the reference page."""
    keys = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def describe_keys(section: type[BaseModel] = ExperimentConfig, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every dotted key with its default, as YAML writes it, and its meaning."""
    rows = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += describe_keys(kind, f"{prefix}{name}.")
        else:
            default = list(info.default) if isinstance(info.default, tuple) else info.default
            shown = yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            rows.append((prefix + name, shown, info.description or ""))
    return rows


def _explain(e: ValidationError, file: str | Path | None, section: type[BaseModel]) -> UserError:
    first = e.errors()[0]
    key = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        inside = next(iter(first["input"]), None) if isinstance(first["input"], dict) else None  # a section's first key
        wanted = key if inside is None else f"{key}.{inside}"
        near = difflib.get_close_matches(wanted, valid_keys(section), n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]}?" if near else "see `fedvpa config --help`"
        return UserError("unknown key", remedy, file=file, field=key)
    if first["type"] == "literal_error":
        options = [o.strip(" '") for o in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(first["input"]), options, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        return UserError(
            f"unknown value {first['input']!r}", f"{hint}choose from {', '.join(options)}", file=file, field=key
        )
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first["input"], (dict, list)) or not key else f" (got {first['input']!r})"
    return UserError(message[0].lower() + message[1:] + shown, file=file, field=key or None)
