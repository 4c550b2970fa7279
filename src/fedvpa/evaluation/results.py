"""What a run writes down: the schema of ``results.json`` and ``metrics.jsonl``.

The models below are the one place where a key is defined; ``docs/results-schema.md`` is generated from them
(``python -m fedvpa.evaluation.results > docs/results-schema.md``), and every file is checked against them on the way
in and out (`fedvpa.evaluation.result_files`). Inside the package results are plain dicts and lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Strict):
    """One method, seed, population, inference and context size. Accuracies are means over users."""

    method: str = Field(description="The method, as in `method.name`.")
    seed: int = Field(description="The seed of data, training and evaluation.")
    population: Literal["seen", "unseen"] = Field(
        description="`seen`: users that took part in training; `unseen`: users that never did."
    )
    inference: Literal["amortised", "mixture", "refined", "gaussian", "none"] = Field(
        description="How the user's latent is inferred from the context; `none` for methods without a latent."
    )
    default: bool = Field(
        description="True for exactly one inference per method, seed, population and context size: the one chosen on "
        "validation users."
    )
    context_size: int | None = Field(description="Labelled pairs shown per user; null where the method uses none.")
    accuracy: float = Field(description="Share of query pairs predicted as the user labelled them, mean over users.")
    worst_group_accuracy: float | None = Field(description="The lowest of the groups' accuracies.")
    log_loss: float | None = Field(description="Mean of -log p(label), in nats; log 2 = 0.693 is a coin.")
    ece: float | None = Field(description="Expected calibration error: mean gap between confidence and accuracy.")
    switch_gap: float | None = Field(
        description="Accuracy with the user's own latent minus accuracy with one of a user of the opposite group."
    )
    flip_rate: float | None = Field(
        description="Share of the correct predictions that flip when all context labels are exchanged."
    )
    active_units: float | None = Field(
        description="Share of latent dimensions whose posterior mean varies over users (variance above 0.005)."
    )
    cluster_purity: float | None = Field(
        description="Share of the training users whose cluster's majority is their own true group."
    )
    kl: float | None = Field(description="KL of the users' posteriors to the prior used in training, in nats.")
    bytes_up: float | None = Field(description="Bytes that one client sends per round.")
    bytes_down: float | None = Field(description="Bytes that one client receives per round.")
    seconds_per_round: float | None = Field(description="Wall-clock seconds of a training round, evaluation excluded.")
    epsilon: float | None = Field(
        None,
        description="Client-level epsilon of everything released in training (docs/privacy.md); null without a bound: "
        "privacy is off, or something is sent without noise.",
    )
    conflict_accuracy: float | None = Field(None, description="Accuracy on the pairs on which groups disagree.")
    matched_accuracy: float | None = Field(
        None, description="Accuracy on queries of two items that are about equally popular (`evaluation.matched`)."
    )
    group_accuracy: dict[str, float | None] | None = Field(None, description="Accuracy per true group, by name.")
    shuffled_accuracy: float | None = Field(None, description="Accuracy with the latent of another user, at random.")
    zero_accuracy: float | None = Field(None, description="Accuracy with z = 0.")
    kl_standard: float | None = Field(None, description="KL of the users' posteriors to N(0, I), in nats.")
    mean_norm: float | None = Field(None, description="Norm of the posterior mean, mean over users.")
    effective_components: float | None = Field(
        None, description="exp(H(w)): how many prior components a client's weights are spread over."
    )
    same_group_weight: float | None = Field(
        None, description="Prior weight on peers of the same true group (known in simulation only)."
    )
    clusters: float | None = Field(None, description="M, the number of clusters in use (chosen, with `auto`).")
    ari: float | None = Field(None, description="Adjusted Rand index of clusters against true groups.")
    silhouette: float | None = Field(None, description="Silhouette of the posterior means by cluster.")
    flip_rate_at_init: float | None = Field(None, description="`flip_rate` before training.")
    active_units_at_init: float | None = Field(None, description="`active_units` before training.")
    kl_at_init: float | None = Field(None, description="`kl` before training.")
    mean_norm_at_init: float | None = Field(None, description="`mean_norm` before training.")
    lost_uploads: float | None = Field(
        None, description="Uploads of the training that did not come (silent or failed clients); null where none."
    )
    rejected_uploads: float | None = Field(
        None, description="Uploads of the training that were rejected; null if none."
    )


class Interval(_Strict):
    """A mean over seeds with Student's 95 % interval; the interval is null with one seed."""

    mean: float = Field(description="Mean over the seeds where the metric has a meaning.")
    ci_low: float | None = Field(description="Lower end of the 95 % interval.")
    ci_high: float | None = Field(description="Upper end of the 95 % interval.")


class Paired(_Strict):
    """The difference in accuracy to the reference method, on the same seeds and test pairs."""

    reference: str = Field(description="`fedvpa-gp` where it was run, else the first method.")
    context_size: int | None = Field(description="Context size of the comparison.")
    difference: float = Field(description="Accuracy of this method's default minus that of the reference's default.")
    ci_low: float = Field(description="Lower end of the 95 % interval.")
    ci_high: float = Field(description="Upper end of the 95 % interval.")
    p: float = Field(description="Two-sided bootstrap p-value of no difference; at least 2 / (resamples + 1).")
    p_holm: float = Field(description="The same after Holm's correction over the methods at this population and size.")
    seeds: int = Field(description="Seeds that both methods have.")


class Summary(_Strict):
    """One method, population, inference and context size over all seeds."""

    method: str = Field(description="The method.")
    population: Literal["seen", "unseen"] = Field(description="As in a row.")
    inference: Literal["amortised", "mixture", "refined", "gaussian", "none", "varies"] = Field(
        description="As in a row; `varies` where validation chose different inferences for different seeds (such an "
        "entry is the default, and holds each seed's own choice)."
    )
    default: bool = Field(description="True for exactly one entry per method, population and context size.")
    context_size: int | None = Field(description="As in a row.")
    seeds: int = Field(description="How many seeds; with 1 the interval covers the choice of test pairs only.")
    pairs: int | None = Field(description="Test pairs that were resampled; null if only seeds were.")
    mean: float = Field(description="Accuracy, mean over seeds.")
    ci_low: float | None = Field(description="Lower end of its 95 % interval over seeds and test pairs.")
    ci_high: float | None = Field(description="Upper end of its 95 % interval.")
    metrics: dict[str, Interval] = Field(
        description="Every other metric that has a meaning, with an interval over seeds; a group's accuracy is "
        "`group_accuracy/NAME`."
    )
    paired: list[Paired] = Field(description="Differences to the reference; empty unless `default` is true.")


class Latents(_Strict):
    """The users' posteriors at the training context size."""

    ids: list[str] = Field(description="Users.")
    groups: list[int | None] = Field(description="Index into `group_names`, or null.")
    populations: list[str] = Field(description="`seen` or `unseen`.")
    means: list[list[float]] = Field(description="(users, d) posterior means.")
    log_vars: list[list[float]] = Field(description="(users, d) posterior log variances.")

    @model_validator(mode="after")
    def _same_length(self) -> Latents:
        if len({len(v) for v in (self.ids, self.groups, self.populations, self.means, self.log_vars)}) != 1:
            raise ValueError("ids, groups, populations, means and log_vars differ in length")
        return self


class PriorWeights(_Strict):
    """The mixture weights w_ij of each client's prior (method.md, section 5)."""

    ids: list[str] = Field(description="Clients.")
    groups: list[int | None] = Field(description="Index into `group_names`, or null.")
    weights: list[list[float]] = Field(description="(clients, clients) on peers, or (clients, K) on components.")


class Diagnostics(_Strict):
    """What the figures of one method show, from its first seed."""

    latents: Latents | None = Field(None, description="The users' posteriors.")
    prototypes: list[list[float]] | None = Field(None, description="(M, d) prototypes or cluster centroids.")
    prior_weights: PriorWeights | None = Field(None, description="The mixture prior's weights.")
    group_names: list[str] | None = Field(None, description="Names of the true groups, where known.")


class Results(_Strict):
    """The whole of `results.json`."""

    rows: list[Row] = Field(description="One per method, seed, population, inference and context size.")
    summary: list[Summary] = Field(description="Over seeds: means, 95 % intervals, paired differences.")
    diagnostics: dict[str, Diagnostics] = Field({}, description="Per method: what the figures show.")
    switching: list[dict[str, Any]] = Field(
        [], description="Results of a switching test (the same pairs with opposite labels), where the data has one."
    )
    notes: list[str] = Field([], description="Sentences that belong wherever these results are shown.")
    data: dict[str, Any] = Field({}, description="Counts of the data: read, dropped and why, clients, pairs.")
    environment: dict[str, Any] = Field({}, description="Versions, device, commit.")

    @model_validator(mode="after")
    def _one_default(self) -> Results:
        count: dict[tuple[Any, ...], int] = {}
        for r in self.rows:
            key = (r.method, r.seed, r.population, r.context_size)
            count[key] = count.get(key, 0) + r.default
        for (method, seed, population, size), n in count.items():
            if n != 1:
                where = f"{method}, seed {seed}, {population}, context size {size}"
                raise ValueError(f"{n} rows with default true instead of 1 ({where})")
        return self


class Validation(_Strict):
    """Accuracy on the validation users in the course of training."""

    accuracy: float = Field(description="Mean over users.")
    worst_group_accuracy: float | None = Field(None, description="The lowest of the groups' accuracies.")
    group_accuracy: dict[str, float | None] | None = Field(None, description="Accuracy per true group, by name.")


class RoundRecord(_Strict):
    """One line of `metrics.jsonl`: a training round of one method and seed; losses are means over its clients."""

    method: str = Field(description="The method.")
    seed: int = Field(description="The seed.")
    round: int = Field(description="The round, from 1.")
    loss: float | None = Field(None, description="The whole loss.")
    reconstruction: float | None = Field(None, description="-log p of the query labels; its weight is 1.")
    evidence: float | None = Field(
        None, description="log p(judgements) of a client under the prior, approximately, mean over clients."
    )
    kl: float | None = Field(None, description="KL to the prior, in nats, before its weight beta.")
    ortho: float | None = Field(None, description="Orthogonal loss, before its weight lambda; 0 or null while off.")
    mixture: float | None = Field(None, description="Mixture predictive loss, before its weight; 0 or null while off.")
    cluster: float | None = Field(
        None, description="Fit under the own cluster's prototype, before its weight; 0 or null while it is off."
    )
    bytes_up: float | None = Field(None, description="Bytes that one client sent.")
    bytes_down: float | None = Field(None, description="Bytes that one client received.")
    seconds: float | None = Field(None, description="Wall-clock seconds of the round.")
    epsilon: float | None = Field(None, description="Client-level epsilon of everything released up to this round.")
    mean_norm: float | None = Field(None, description="Norm of the uploaded posterior means, mean over clients.")
    effective_components: float | None = Field(None, description="exp(H(w)) of the prior weights, mean over clients.")
    validation: Validation | None = Field(None, description="Only on rounds with an evaluation.")
    faults: dict[str, int] | None = Field(
        None,
        description="Clients that were `silent`, `failed` or `rejected` in the round, and injected faults by kind; "
        "null where nothing went wrong.",
    )
    rejected: dict[str, str] | None = Field(None, description="Client -> why its upload was rejected.")


IDENTITY = ("method", "seed", "population", "inference", "default", "context_size")
METRICS = tuple(k for k in Row.model_fields if k not in (*IDENTITY, "accuracy", "group_accuracy"))


def schema_markdown() -> str:
    """The page ``docs/results-schema.md``, made from the models above."""
    parts = [_PREFACE]
    sections: Sequence[tuple[str, type[BaseModel]]] = (
        ("`results.json`", Results),
        ("A row", Row),
        ("A summary entry", Summary),
        ("A metric of a summary entry", Interval),
        ("A paired difference", Paired),
        ("Diagnostics of a method", Diagnostics),
        ("Latents", Latents),
        ("Prior weights", PriorWeights),
        ("A line of `metrics.jsonl`", RoundRecord),
        ("Its validation", Validation),
    )
    for title, model in sections:
        parts.append(f"## {title}\n\n{model.__doc__}\n\n" + "\n".join(_table(model)) + "\n")
    return "\n".join(parts)


_PREFACE = """# Results: the promise to your scripts

<!-- Generated by `python -m fedvpa.evaluation.results > docs/results-schema.md`; do not edit. -->

`fedvpa train` and `fedvpa compare` write `results.json` and `metrics.jsonl` into the run folder. The keys below keep
their names and meanings; a key may be added, none is taken away without a new major version. A metric without a meaning
for a method is null. Files are UTF-8, numbers are finite.

Intervals are 95 %. Those of accuracies are percentile bootstrap intervals: each resample draws seeds *and* test pairs
with replacement, the same ones for every method, so that differences are paired; with few seeds such intervals are
somewhat too narrow. Those of other metrics, of which there is one value per seed, are Student's. Holm's correction
runs over the methods that one table compares: one population, one context size.

```python
import json

results = json.load(open("runs/demo/results.json"))
unseen = [r for r in results["rows"] if r["default"] and r["population"] == "unseen" and r["context_size"] in (8, None)]
```
"""


def _table(model: type[BaseModel]) -> Iterable[str]:
    yield "| key | type | meaning |"
    yield "| --- | --- | --- |"
    for name, info in model.model_fields.items():
        optional = "" if info.is_required() else " May be left out."
        yield f"| `{name}` | {_type_name(info.annotation)} | {info.description}{optional} |"


def _type_name(annotation: Any) -> str:
    simple = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "anything"}
    if annotation in simple:
        return simple[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(a) for a in args)
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in args)
    if origin is list:
        return f"list of {_inner(args[0])}"
    if origin is dict:
        return f"object of {_inner(args[1])}"
    return f"object ({annotation.__name__})"


def _inner(annotation: Any) -> str:
    name = _type_name(annotation)
    return f"({name})" if " or " in name else name


if __name__ == "__main__":
    print(schema_markdown(), end="")
