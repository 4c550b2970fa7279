"""A sentence encoder as a backbone, by way of the sentence-transformers library (Reimers and Gurevych 2019).

Pooling, normalisation, prompt and the longest text are the model's own. Weights are read from safetensors only, and
of the modules that such a model may consist of, those below are loaded and no others: none of them runs code that a
model ships, and none unpickles anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedvpa.backbone.encode import OneModel
from fedvpa.backbone.extract import Extraction, Extractor, Item
from fedvpa.backbone.features import TextEncoder
from fedvpa.backbone.files import first_line, quiet, writable, write_whole
from fedvpa.backbone.models import MODULES, Located, choose_dtype, locate
from fedvpa.backbone.packing import Batch, Row
from fedvpa.backbone.store import OpenStore, Store
from fedvpa.backbone.tokens import Text, kept
from fedvpa.config import BackboneConfig
from fedvpa.errors import UserError

_KNOWN = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
_WEIGHTS = ("Transformer", "Dense", "LayerNorm")
_UNLIMITED = 10**9
_CHUNK = 256  # texts tokenised at once
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True)
class Settings:
    """What a sentence encoder's own files settle.

    Attributes:
        dim: D, length of an embedding.
        max_seq_length: longest text in tokens, the special ones included; None where nothing limits it.
        pooling: over tokens, by the library's names; normalize: whether embeddings have length 1.
        prompt: what stands before each text; empty for most models.
    """

    dim: int
    max_seq_length: int | None
    pooling: list[str]
    normalize: bool
    prompt: str


class FrozenEncoder:
    """A sentence encoder that is only ever run forward; every text is a row of its own.

    Args:
        found: where it lies.
        dtype: of the weights; device: where it runs.
        longest: in tokens, for a model without a limit.

    Raises:
        UserError: not made of the modules known here, not in safetensors, damaged, or without a tokenizer.
    """

    packed = False

    def __init__(self, found: Located, dtype: torch.dtype, device: torch.device, longest: int) -> None:
        self.model, self.device = _load(found, dtype, device), device
        self.settings = _settings(self.model)
        if self.settings.max_seq_length is None:
            self.model.max_seq_length = longest
        self._tokenizer = self.model.tokenizer
        prompt = self.settings.prompt or None
        self._prompt_length = self.model.preprocess(["x"], prompt=prompt).get("prompt_length")

    def texts(self, responses: Sequence[str], heads: Sequence[str] | None = None) -> list[Text]:
        """Token ids as the library makes them, prompt and special tokens included; what is too long loses its end.

        Args:
            heads: what stands before each response. Of both together what is too long is cut by `tokens.kept`.

        Raises:
            UserError: a text without a single token.
        """
        prompt, found = self.settings.prompt, []
        heads = [""] * len(responses) if heads is None else heads
        lost = [0] * len(responses)
        strings = list(responses)
        for i, (head, response) in enumerate(zip(heads, responses, strict=True)):
            if head:
                head, lost[i] = self._shortened(head, response)
                strings[i] = head + response
        for start in range(0, len(strings), _CHUNK):
            chunk = strings[start : start + _CHUNK]
            given = self.model.preprocess(chunk, prompt=prompt or None)
            whole = self._tokenizer([prompt + s for s in chunk], truncation=False, verbose=False)["input_ids"]
            rows = zip(given["input_ids"], given["attention_mask"], whole, strict=True)
            for number, (ids, mask, full) in enumerate(rows, start):
                if not (read := tuple(ids[mask.bool()].tolist())):
                    raise UserError("an empty response", "remove it, or give it some text", field="response")
                found.append(Text((), read, lost[number] + max(0, len(full) - len(read))))
        return found

    def _shortened(self, head: str, response: str) -> tuple[str, int]:
        """The end of a head that leaves the response its share of what is read, and how many tokens are lost."""
        empty = len(self._tokenizer([self.settings.prompt], verbose=False)["input_ids"][0])
        room = (self.model.max_seq_length or _UNLIMITED) - empty
        one, two = self._tokenizer([head, response], add_special_tokens=False, verbose=False)["input_ids"]
        before, _ = kept(len(one), len(two), max(room, 2))
        if before == len(one):
            return head, 0
        # Tokens are found in the text by what they decode to, since not every tokenizer tells where they begin.
        end = self._tokenizer.decode(one[len(one) - before :]).strip()
        start = head.rstrip().rfind(end) if end else -1
        cut = head[start:] if start >= 0 else head[-round(len(head) * before / len(one)) or len(head) :]
        return cut, len(one) - before

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pads rows of one text each on the side that the tokenizer pads."""
        ids = [torch.tensor(row.responses[0]) for row in rows]
        side, pad = self._tokenizer.padding_side, self._tokenizer.pad_token_id or 0
        given = pad_sequence(ids, True, pad, side)
        mask = pad_sequence([torch.ones_like(i) for i in ids], True, 0, side)
        spans = [(row.items[0], r, 0, len(i)) for r, (row, i) in enumerate(zip(rows, ids, strict=True))]
        return Batch(given.to(self.device), None, mask.to(self.device), spans, sum(map(len, ids)))

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> dict[int | None, Tensor]:
        """Embeddings (rows, D).

        Raises:
            UserError: the accelerator's memory does not hold the batch.
        """
        given: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if "token_type_ids" in self._tokenizer.model_input_names:
            given["token_type_ids"] = torch.zeros_like(batch.input_ids)
        if self._prompt_length is not None:
            given["prompt_length"] = self._prompt_length
        try:
            return {None: self.model({**given, "modality": "text"})["sentence_embedding"]}
        except torch.OutOfMemoryError:
            raise UserError("a batch does not fit into memory", "lower it", field="backbone.batch_tokens") from None


@dataclass(frozen=True)
class SentenceExtractor:
    """h(x, r): the embedding of the response, or of the prompt's turns and the response."""

    load: Callable[[frozenset[int | None]], FrozenEncoder]
    identity: Mapping[str, Any]
    dim: int
    with_prompt: bool
    label: str = "sentence embeddings"
    layer: None = None

    def texts(self, lm: FrozenEncoder, items: Sequence[Item]) -> list[Text]:
        responses = [i.responses[0] for i in items]
        if not self.with_prompt:
            return lm.texts(responses)
        return lm.texts(responses, ["".join(f"{m.content}\n\n" for m in i.prompt) for i in items])

    def vectors(self, lm: FrozenEncoder, hidden: Tensor, batch: Batch) -> Tensor:
        """(spans, D) float32"""
        return hidden[[row for _, row, _, _ in batch.spans]].float()


class SentenceBackbone(OneModel):
    """A frozen sentence encoder.

    It reads the response alone (``backbone.text: response``): where items of several prompts are compared, the prompt
    is the same on both sides of a pair, and a prompt that all items share carries no information. With
    ``prompt+response`` it reads the prompt's turns, too, each followed by a blank line.

    Args:
        config, cache, device, open_store: as for `OneModel`; of the configuration, ``layer`` and ``pooling`` have no
            meaning here, and ``max_tokens`` has one only for a model without a limit of its own.

    Raises:
        UserError: as `models.locate` and `FrozenEncoder`; later also whatever `store.Store` raises.
    """

    def __init__(
        self, config: BackboneConfig, cache: Path, device: str = "auto", open_store: OpenStore = Store
    ) -> None:
        super().__init__(config, cache, device, open_store)
        self.model = locate(config.single_model, config.revision, cache)
        self.dtype = sentence_dtype(config.dtype, self.device)
        self._loaded: FrozenEncoder | None = None
        self.settings = self._described()

    @property
    def dim(self) -> int:
        return self.settings.dim

    @property
    def identity(self) -> Mapping[str, Any]:
        own = {k: v for k, v in asdict(self.settings).items() if k != "dim"}
        own["max_seq_length"] = self.settings.max_seq_length or self.config.max_tokens
        named = str(self.dtype).removeprefix("torch.")
        kind = {"kind": "sentence embeddings", "text": self.config.text}
        if self.config.text == "prompt+response":
            kind["cut"] = "both; v2"
        return {"model": self.model.fingerprint, "dtype": named, **kind, **own}

    def parts(self, items: Sequence[Item], progress: bool, beside: Sequence[TextEncoder] = ()) -> list[Extraction]:
        return [_of_sentences(part) for part in super().parts(items, progress)]

    def _tokens(self, items: Sequence[Item]) -> list[Text]:
        return self._features.texts(self._encoder(), items)

    @cached_property
    def _features(self) -> Extractor[FrozenEncoder]:
        with_prompt = self.config.text == "prompt+response"
        return SentenceExtractor(lambda _: self._encoder(), self.identity, self.dim, with_prompt)

    def _encoder(self) -> FrozenEncoder:
        if self._loaded is None:
            self._loaded = FrozenEncoder(self.model, self.dtype, self.device, self.config.max_tokens)
        return self._loaded

    def _described(self) -> Settings:
        """The model's settings, remembered in the cache, so that it is not loaded where every vector is cached."""
        memo = self.cache / "models" / f"sentence-encoder-{self.model.fingerprint[:24]}.json"
        try:
            return Settings(**json.loads(memo.read_text()))
        except (OSError, ValueError, TypeError):
            settings = self._encoder().settings
        with writable(self.cache):
            write_whole(memo, json.dumps(asdict(settings)))
        return settings


def sentence_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """As `models.choose_dtype`, but ``auto`` is float32: the models are small, and distances between texts are too."""
    return torch.float32 if dtype == "auto" else choose_dtype(dtype, device)


def _of_sentences(part: Extraction) -> Extraction:
    """Texts lose their end, and there is no prompt that two of them could share."""
    return Extraction(**{**vars(part), "packed": None, "ends": True})


def _settings(model: Any) -> Settings:
    kinds = {type(module).__name__: module for module in model}
    modes = kinds["Pooling"].pooling_mode if "Pooling" in kinds else []
    limit = model.max_seq_length
    return Settings(
        dim=model.get_embedding_dimension(),
        max_seq_length=None if limit is None or limit > _UNLIMITED else limit,
        pooling=[modes] if isinstance(modes, str) else list(modes),
        normalize="Normalize" in kinds,
        prompt=model.prompts.get(model.default_prompt_name) or "",
    )


def _load(found: Located, dtype: torch.dtype, device: torch.device) -> Any:
    """The library's model, frozen and in evaluation mode."""
    from sentence_transformers import SentenceTransformer  # takes seconds, and most runs need no sentence encoder

    _check(found)
    try:
        with quiet():
            model = SentenceTransformer(
                str(found.folder),
                device=str(device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": dtype, "use_safetensors": True},
            )
    except _DAMAGED as e:
        problem = f"sentence encoder {found.name!r} cannot be loaded ({first_line(e)})"
        remedy = "it needs a tokenizer and safetensors weights of a model that sentence-transformers knows"
        raise UserError(problem, remedy, file=found.folder, field="backbone.model") from None
    return model.requires_grad_(False).eval().to(dtype)


def _check(found: Located) -> None:
    """Refuses modules that are not known here, and weights that are not in safetensors."""
    try:
        modules = json.loads((found.folder / MODULES).read_text())
        parts = [(m["type"], found.folder / m["path"]) for m in modules]
    except FileNotFoundError:
        parts = [("sentence_transformers.models.Transformer", found.folder)]
    except (ValueError, KeyError, TypeError) as e:
        problem, remedy = f"not a list of modules ({first_line(e)})", "put the original back"
        raise UserError(problem, remedy, file=found.folder / MODULES, field="backbone.model") from None
    for kind, folder in parts:
        package, _, name = kind.rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or name not in _KNOWN:
            problem, remedy = f"its module {kind!r} is not known here", f"choose a model of {', '.join(_KNOWN)} only"
        elif name in _WEIGHTS and not any(folder.glob("model*.safetensors")):
            problem, remedy = f"no safetensors weights for its module {name}", "choose a model that has them"
        elif (folder / "adapter_config.json").is_file():
            problem, remedy = "its weights are an adapter for another model", "merge the adapter into that model"
        else:
            continue
        raise UserError(
            f"sentence encoder {found.name!r}: {problem}", remedy, file=found.folder, field="backbone.model"
        )
