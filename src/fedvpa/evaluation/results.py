"""What a run writes down: the schema of ``results.json`` and ``metrics.jsonl``, their readers and writers.

The models below are the one place where a key is defined; ``docs/results-schema.md`` is generated from them
(``python -m fedvpa.evaluation.results > docs/results-schema.md``), and every file is checked against them on the way
in and out. Inside the package results are plain dicts and lists.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedvpa.errors import UserError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Strict):
    """One method, seed, population, inference and context size. Accuracies are means over users."""

    method: str = Field(description="The method, as in `method.name`.")
    seed: int = Field(description="The seed of data, training and evaluation.")
    population: Literal["seen", "unseen"] = Field(
        description="`seen`: users that took part in training; `unseen`: users that never did."
    )
    inference: Literal["amortised", "mixture", "refined", "none"] = Field(
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
    conflict_accuracy: float | None = Field(None, description="Accuracy on the pairs on which groups disagree.")
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
    ari: float | None = Field(None, description="Adjusted Rand index of clusters against true groups.")
    silhouette: float | None = Field(None, description="Silhouette of the posterior means by cluster.")
    flip_rate_at_init: float | None = Field(None, description="`flip_rate` before training.")
    active_units_at_init: float | None = Field(None, description="`active_units` before training.")
    kl_at_init: float | None = Field(None, description="`kl` before training.")
    mean_norm_at_init: float | None = Field(None, description="`mean_norm` before training.")


class Interval(_Strict):
    """A mean over seeds with its 95 % bootstrap interval; the interval is null with one seed."""

    mean: float = Field(description="Mean over the seeds where the metric has a meaning.")
    ci_low: float | None = Field(description="Lower end of the 95 % interval.")
    ci_high: float | None = Field(description="Upper end of the 95 % interval.")


class Paired(_Strict):
    """The difference in accuracy to the reference method, on the same seeds and test pairs."""

    reference: str = Field(description="`fedvpa-gp` where it was run, else the first method.")
    context_size: int | None = Field(
        description="Context size of the comparison; the method without one has no other row."
    )
    difference: float = Field(description="Accuracy of this method's default minus that of the reference's default.")
    ci_low: float = Field(description="Lower end of the 95 % interval.")
    ci_high: float = Field(description="Upper end of the 95 % interval.")
    p: float = Field(description="Two-sided bootstrap p-value of no difference; at least 2 / (resamples + 1).")
    p_holm: float = Field(
        description="The same after Holm's correction over the methods of this population and context size."
    )
    seeds: int = Field(description="Seeds that both methods have.")


class Summary(_Strict):
    """One method, population, inference and context size over all seeds."""

    method: str = Field(description="The method.")
    population: Literal["seen", "unseen"] = Field(description="As in a row.")
    inference: Literal["amortised", "mixture", "refined", "none", "varies"] = Field(
        description="As in a row; `varies` where validation chose different inferences for different seeds (such an entry "
        "is the default, and holds each seed's own choice)."
    )
    default: bool = Field(description="True for exactly one entry per method, population and context size.")
    context_size: int | None = Field(description="As in a row.")
    seeds: int = Field(description="How many seeds; with 1 the interval covers the choice of test pairs only.")
    pairs: int | None = Field(description="Test pairs that were resampled; null if only seeds were.")
    mean: float = Field(description="Accuracy, mean over seeds.")
    ci_low: float | None = Field(
        description="Lower end of its 95 % interval (percentile bootstrap over seeds and test pairs)."
    )
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
    weights: list[list[float]] = Field(
        description="(clients, clients) weights on peers, or (clients, K) on components."
    )


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
    """One line of `metrics.jsonl`: a training round of one method and seed. Loss terms are means over the round's clients."""

    method: str = Field(description="The method.")
    seed: int = Field(description="The seed.")
    round: int = Field(description="The round, from 1.")
    loss: float | None = Field(None, description="The whole loss.")
    reconstruction: float | None = Field(
        None, description="-log p of the query labels, before weighting (its weight is 1)."
    )
    kl: float | None = Field(None, description="KL to the prior, in nats, before its weight beta.")
    ortho: float | None = Field(
        None, description="Orthogonal loss, before its weight lambda; 0 or null while it is off."
    )
    mixture: float | None = Field(
        None, description="Mixture predictive loss, before its weight; 0 or null while it is off."
    )
    bytes_up: float | None = Field(None, description="Bytes that one client sent.")
    bytes_down: float | None = Field(None, description="Bytes that one client received.")
    seconds: float | None = Field(None, description="Wall-clock seconds of the round.")
    mean_norm: float | None = Field(None, description="Norm of the uploaded posterior means, mean over clients.")
    effective_components: float | None = Field(None, description="exp(H(w)) of the prior weights, mean over clients.")
    validation: Validation | None = Field(None, description="Only on rounds with an evaluation.")


IDENTITY = ("method", "seed", "population", "inference", "default", "context_size")
METRICS = tuple(k for k in Row.model_fields if k not in (*IDENTITY, "accuracy", "group_accuracy"))


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads and checks a ``results.json``; keys that were left out come back with their defaults.

    Raises:
        UserError: a missing or malformed file, naming the file and the field.
    """
    path = Path(path)
    try:
        tree = json.loads(_read_text(path))
    except json.JSONDecodeError as e:
        raise UserError(f"not valid JSON ({e.msg})", "run `fedvpa compare` again", file=path, line=e.lineno) from None
    return check_results(tree, file=path)


def check_results(tree: Any, file: str | Path | None = None) -> dict[str, Any]:
    """Validates plain results; see `read_results`."""
    try:
        return Results.model_validate(tree).model_dump()
    except ValidationError as e:
        raise _explain(e, file) from None


def write_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Checks results and writes them atomically; NaN and infinities become null, arrays and tensors lists.

    Raises:
        UserError: results that do not fit the schema, or a file that cannot be written.
    """
    path = Path(path)
    checked = check_results(plain(results), file=path)
    blocks = []
    for key, value in checked.items():
        if isinstance(value, list) and value:
            body = ",\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value)
            blocks.append(f"{json.dumps(key)}: [\n{body}\n]")
        else:
            blocks.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return write_text(path, "{" + ",\n".join(blocks) + "}\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads and checks a ``metrics.jsonl``.

    A last line without a line break is what a killed run leaves behind; it is left out.

    Raises:
        UserError: a missing file or a malformed line, naming file, line and field.
    """
    path = Path(path)
    records = []
    lines = _read_text(path).split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            records.append(RoundRecord.model_validate(json.loads(line)).model_dump())
        except json.JSONDecodeError as e:
            raise UserError(f"not valid JSON ({e.msg})", "remove the line", file=path, line=number) from None
        except ValidationError as e:
            raise _explain(e, path, number) from None
    return records


def plain(value: Any) -> Any:
    """Numpy arrays and scalars and torch tensors as plain lists and numbers; NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file as a whole or not at all (a temporary file beside it, then a rename).

    Raises:
        UserError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as f:
            temporary = f.name
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as e:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot be written ({e.strerror})", "check the folder and the free space", file=path) from None
    return path


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"cannot be read ({e.strerror})", "give the folder of a finished run", file=path) from None
    except UnicodeDecodeError:
        raise UserError("not a text file", "give the folder of a finished run", file=path) from None


def _explain(e: ValidationError, file: str | Path | None, line: int | None = None) -> UserError:
    first = e.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    field = ".".join(str(p) for p in first["loc"]) or None
    remedy = "docs/results-schema.md describes the format"
    return UserError(message[0].lower() + message[1:], remedy, file=file, line=line, field=field)


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

`fedvpa train` and `fedvpa compare` write `results.json` and `metrics.jsonl` into the run folder. The keys below keep their
names and meanings; a key may be added, none is taken away without a new major version. A metric without a meaning for a
method is null. Files are UTF-8, numbers are finite.

Intervals are 95 % percentile bootstrap intervals. For accuracies each resample draws seeds *and* test pairs with
replacement, the same ones for every method, so that differences are paired; with few seeds such intervals are somewhat too
narrow. Holm's correction runs over the methods that one table compares: one population, one context size.

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
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"object of {_type_name(args[1])}"
    return f"object ({annotation.__name__})"


if __name__ == "__main__":
    print(schema_markdown(), end="")
