"""`fedvpa align`: candidates, labels, training, judging; each phase is kept, and a killed run goes on where it was.

A folder holds ``alignment.yaml`` (what was asked), ``prompts.json``, ``candidates/`` and ``responses/`` (shards),
``labels.json``, ``training/``, the policy (``policy.json``, the adapter, ``selector/``), with a baseline its policy in
``baseline/``, then ``judged.jsonl``, ``alignment.json``, ``report.html`` and the model card ``README.md``.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from fedvpa.alignment.candidates import Request, Writing, capped_share, respond
from fedvpa.alignment.card import model_card
from fedvpa.alignment.config import AlignmentConfig
from fedvpa.alignment.dpo import Trained, train
from fedvpa.alignment.judging import Judging
from fedvpa.alignment.labelling import FEW, Labels, Latent, Preference, label, labelling_latents
from fedvpa.alignment.language import Conditioned, LanguageModel, Response, writer_of
from fedvpa.alignment.policy import INFO, PersonalizedPolicy, save_policy
from fedvpa.alignment.prompts import Prompts, public_prompts
from fedvpa.apps import runs
from fedvpa.backbone.models import cache_dir, resolve
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import plain, write_text
from fedvpa.preferences.schema import FederatedPreferences, Prompt, as_prompt
from fedvpa.preferences.sources import load_preferences
from fedvpa.reporting import alignment_page
from fedvpa.selector import Selector

ASKED, PROMPTS, LABELS, RESULT = "alignment.yaml", "prompts.json", "labels.json", "alignment.json"
PHASES, JUDGED, CARD, REPORT = "phases.json", "judged.jsonl", "README.md", "report.html"
POLICY, BASELINE = "policy", "baseline"


def align(
    run: Path, out: Path, config: AlignmentConfig, console: Console, baseline: Path | None = None
) -> dict[str, Any]:
    """Aligns a language model with a run's selector; returns what ``alignment.json`` holds.

    Args:
        run: of `fedvpa train`; out: a folder, new or with an unfinished alignment of the same run and configuration.
        baseline: a run whose selector labels for nobody in particular; its policy knows no latent.

    Raises:
        UserError: no such run, another alignment in the folder, too few prompts, a missing model.
    """
    selectors = {POLICY: Selector.from_pretrained(run, cache=True)}
    if baseline is not None:
        selectors[BASELINE] = Selector.from_pretrained(baseline, cache=True)
    if not selectors[POLICY].method.latent:
        problem = f"{selectors[POLICY].info.method} has no latent to switch"
        raise UserError(problem, "give a run of a method with one, and this one as --baseline", file=run)
    model = config.policy.model or writer_of(selectors[POLICY].info.config.backbone)
    revision = config.policy.revision if config.policy.model else selectors[POLICY].info.config.backbone.revision
    config = config.model_copy(
        update={"policy": config.policy.model_copy(update={"model": model, "revision": revision})}
    )
    asked = {
        "selectors": {name: s.info.model_hash for name, s in selectors.items()},
        "runs": {POLICY: str(run), BASELINE: None if baseline is None else str(baseline)},
        **config.model_dump(mode="json"),
    }
    with runs.locked(out):
        _check(out, asked)
        if (out / RESULT).is_file():
            console.print(f"{out}: this alignment is finished; nothing to do", highlight=False, soft_wrap=True)
            return read_alignment(out)
        return _Alignment(out, config, selectors, console).run()


def read_alignment(folder: Path) -> dict[str, Any]:
    """A finished alignment's ``alignment.json``.

    Raises:
        UserError: there is none.
    """
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError("no finished alignment here", "run `fedvpa align`", file=folder) from None
    assert isinstance(found, dict)
    return found


def _check(out: Path, asked: Mapping[str, Any]) -> None:
    """Writes down what is asked in a new folder; in an old one it must be the same."""
    path = out / ASKED
    if not path.is_file():
        if any(p.name != runs.LOCK for p in out.iterdir()):
            raise UserError(f"holds files but no alignment (no {ASKED})", "choose another --out", file=out)
        write_text(path, yaml.safe_dump(plain(asked), sort_keys=False, allow_unicode=True))
        return
    before = runs.flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    for key, value in runs.flat(plain(asked)).items():
        if not key.startswith("runs.") and before.get(key) != value:
            problem = f"the alignment there has {before.get(key)!r}, this one {value!r}"
            raise UserError(problem, "go on with the same, or choose another --out", file=path, field=key)


class _Phases:
    """Seconds and attempts of each phase, kept in a file; an attempt that was killed counts, its seconds do not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        entry = self.known.setdefault(name, {"seconds": 0.0, "attempts": 0, "done": False})
        again = entry["done"]
        if not again:
            entry["attempts"] += 1
            self._write()
        began = time.perf_counter()
        yield
        if not again:
            entry |= {"seconds": time.perf_counter() - began, "done": True}
            self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps(self.known, indent=1) + "\n")


@dataclass
class _Alignment:
    """One alignment; the methods are its phases."""

    out: Path
    config: AlignmentConfig
    selectors: Mapping[str, Selector]
    console: Console

    def run(self) -> dict[str, Any]:
        phases = _Phases(self.out / PHASES)
        own = self.selectors[POLICY].info.config
        self.cache = cache_dir(own)
        data = load_preferences(own)
        base = LanguageModel.load(self.config.policy, self.cache)
        prompts = self._prompts(data, base)
        with phases("candidates"):
            candidates = self._candidates(base, prompts.training)
        labels = {}
        for name in self.selectors:
            with phases(self._named("labels", name)):
                labels[name] = self._labels(name, data, prompts.training, candidates)
        for name in self.selectors:
            with phases(self._named("training", name)):
                self._train(name, prompts.training, labels[name])
        policies = {name: PersonalizedPolicy.from_pretrained(self._folder(name)) for name in self.selectors}
        judging = Judging.of(policies[POLICY], data, prompts.judging, self.config.judging, self.config.seed)
        shown: dict[str, Any] = {"switching": [], "exchanged": [], "blend": [], "notes": []}
        if judging is not None:
            with phases("judging"):
                shown = self._judge(judging, policies, base)
        return self._finish(data, candidates, labels, phases.known, shown)

    # Phases --------------------------------------------------------------------------------------------------------

    def _prompts(self, data: FederatedPreferences, base: LanguageModel) -> Prompts:
        path = self.out / PROMPTS
        if not path.is_file():
            others = [s.info.config for name, s in self.selectors.items() if name != POLICY]
            held = [load_preferences(c) for c in others if not _same_clients(c, self.selectors[POLICY].info.config)]
            own = self.selectors[POLICY].info.config.data
            found = public_prompts(self.config.prompts, self.config.seed, [data, *held], base, own.path)
            tree = {k: [[m._asdict() for m in p] for p in v] for k, v in found._asdict().items()}
            write_text(path, json.dumps(tree, ensure_ascii=False, indent=1) + "\n")
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Prompts(*(tuple(as_prompt(p) for p in tree[k]) for k in Prompts._fields))

    def _candidates(self, base: LanguageModel, prompts: Sequence[Prompt]) -> list[list[Response]]:
        n = self.config.candidates.number
        requests = [Request((*self.config.candidates.before(k), *p), k) for p in prompts for k in range(n)]
        written = respond(base, requests, self._writing, self.out / "candidates", self.console, "candidates")
        return [written[i : i + n] for i in range(0, len(written), n)]

    def _labels(
        self, name: str, data: FederatedPreferences, prompts: Sequence[Prompt], candidates: list[list[Response]]
    ) -> dict[str, Any]:
        path = self._folder(name) / LABELS
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            selector = self.selectors[name]
            if name == BASELINE:
                latents = [Latent("everybody", selector.infer_pairs([]))]
            else:
                latents = labelling_latents(selector, data, self.config.labels, self.config.seed)
            found = label(selector, prompts, candidates, latents, self.config.labels)
            write_text(path, json.dumps(plain(_tree(found, latents)), ensure_ascii=False) + "\n")
            self._say_conflicts(name, found)
        tree = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(tree, dict)
        return tree

    def _train(self, name: str, prompts: Sequence[Prompt], labels: Mapping[str, Any]) -> None:
        folder = self._folder(name)
        if (folder / INFO).is_file():
            return
        latents = torch.tensor([x["z"] for x in labels["latents"]])
        how = Conditioned.of(self.config.conditioning, latents) if name == POLICY else None
        model = LanguageModel.load(self.config.policy, self.cache, how)
        trained = train(
            model,
            None if how is None else latents,
            prompts,
            [_preference(x) for x in labels["preferences"]],
            self.config.training,
            self.config.seed,
            folder / "training",
            self.console,
        )
        write_text(folder / "training.json", json.dumps(plain(_record(trained)), indent=1) + "\n")
        save_policy(
            folder,
            trained.model,
            self.selectors[name],
            self.config.policy,
            model.identity,
            how,
            self.config.sampling,
            self.config.candidates.max_new_tokens,
        )

    def _judge(
        self, judging: Judging, policies: Mapping[str, PersonalizedPolicy], base: LanguageModel
    ) -> dict[str, Any]:
        writers = {"base": base, **{name: p.model for name, p in policies.items()}}

        def write(who: str, requests: Sequence[Request]) -> list[Response]:
            folder = self.out / "responses"
            return respond(writers[who], requests, self._writing, folder, self.console, f"judging, {who}")

        rows, against = judging.rows(policies[POLICY], write, BASELINE in policies)
        lines = [
            {"kind": r.kind, "latent": r.group, "prompt": i, "text": x.text, "against": y.text}
            for r in rows
            for i, (x, y) in enumerate(zip(r.responses, against[: len(r.responses)], strict=True))
        ]
        write_text(self.out / JUDGED, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
        table, exchanged = judging.table(rows, against), judging.exchanged(rows)
        blend = judging.blends(policies[POLICY], write)
        return {"switching": table, "exchanged": exchanged, "blend": blend, "notes": judging.notes}

    def _finish(
        self,
        data: FederatedPreferences,
        candidates: list[list[Response]],
        labels: Mapping[str, Mapping[str, Any]],
        phases: Mapping[str, Any],
        shown: Mapping[str, Any],
    ) -> dict[str, Any]:
        c, own = self.config, self.selectors[POLICY].info
        assert c.policy.model is not None
        found = resolve(c.policy.model, c.policy.revision, self.cache)
        records = {
            name: json.loads((self._folder(name) / "training.json").read_text(encoding="utf-8"))
            for name in self.selectors
        }
        kept = ("latents", "conflict", "conflict_share", "couples", "empty")
        described = {name: {k: x[k] for k in kept} | {"pairs": len(x["preferences"])} for name, x in labels.items()}
        share = described[POLICY]["conflict_share"]
        notes = [f"Only {share:.1%} of the labels conflict: there is little to switch."] if (share or 0) < FEW else []
        tree = {
            "selector": {"method": own.method, "model_hash": own.model_hash, "groups": list(own.groups)},
            "model": {"name": c.policy.model, "dtype": c.policy.dtype, "fingerprint": found.fingerprint},
            "data": {
                "name": own.config.data.name,
                "source": c.prompts.path or " and ".join([own.config.data.name, *c.prompts.subsets]),
                "training_prompts": c.prompts.training,
                "judging_prompts": c.prompts.judging,
                "candidates": c.candidates.number,
                "max_new_tokens": c.candidates.max_new_tokens,
                "capped": capped_share(r for some in candidates for r in some),
                "notes": list(data.notes),
            },
            "labels": described[POLICY],
            "training": {"beta": c.training.beta, "conditioning": c.conditioning.kind, **records[POLICY]},
            "baseline": {"labels": described[BASELINE], "training": records[BASELINE]} if BASELINE in records else None,
            "phases": phases,
            "peak_gib": _peak_gib(),
            **shown,
            "notes": [*notes, *shown["notes"]],
            "config": c.model_dump(mode="json"),
            "environment": runs.environment(),
        }
        tree = plain(tree)
        write_text(self.out / CARD, model_card(tree, alignment_page.markdown(tree)))
        write_text(self.out / REPORT, alignment_page.render(tree, c.to_yaml()))
        write_text(self.out / RESULT, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
        return tree

    # Parts ---------------------------------------------------------------------------------------------------------

    @property
    def _writing(self) -> Writing:
        c = self.config.candidates
        return Writing(self.config.seed, self.config.sampling, c.max_new_tokens, c.batch)

    def _folder(self, name: str) -> Path:
        return self.out if name == POLICY else self.out / name

    def _named(self, phase: str, name: str) -> str:
        return phase if name == POLICY else f"{phase} ({name})"

    def _say_conflicts(self, name: str, labels: Labels) -> None:
        share = labels.conflict_share
        text = f"{self._named('labels', name)}: {len(labels.preferences)} pairs from {labels.couples} candidate couples"
        conflicts = "" if share is None else f"; {share:.1%} of the labels of two latents conflict"
        self.console.print(text + conflicts, highlight=False, soft_wrap=True)
        if labels.few_conflicts:
            self.console.print("warning: few conflicts, so there is little to switch", highlight=False)


def _peak_gib() -> dict[str, float]:
    """Largest memory of this process, and of its accelerator where one was used."""
    found = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _same_clients(one: ExperimentConfig, two: ExperimentConfig) -> bool:
    return (one.data, one.federation, one.seed) == (two.data, two.federation, two.seed)


def _tree(labels: Labels, latents: Sequence[Latent]) -> dict[str, Any]:
    return {
        "latents": [{"name": x.name, "z": x.z} for x in latents],
        "preferences": [
            {**x._asdict(), "chosen": x.chosen._asdict(), "rejected": x.rejected._asdict()} for x in labels.preferences
        ],
        "conflict": labels.conflict,
        "conflict_share": labels.conflict_share,
        "couples": labels.couples,
        "empty": labels.empty,
    }


def _preference(tree: Mapping[str, Any]) -> Preference:
    return Preference(**{**tree, "chosen": Response(**tree["chosen"]), "rejected": Response(**tree["rejected"])})


def _record(trained: Trained) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "step_seconds": trained.step_seconds,
        "reference_seconds": trained.reference_seconds,
        "history": trained.history,
    }
