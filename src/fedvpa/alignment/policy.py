"""A policy for use: one language model that answers as a user, a prototype or a blend of prototypes would like it.

policy = PersonalizedPolicy.from_pretrained("runs/aligned")
policy.generate("How do I boil an egg?", user=User.load("me.json"))
policy.generate("How do I boil an egg?", blend={0: 0.3, 1: 0.7}, best_of=4)
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, ValidationError

import fedvpa
from fedvpa.alignment.candidates import Request, uniforms
from fedvpa.alignment.config import PolicyConfig
from fedvpa.alignment.labelling import point_of
from fedvpa.alignment.language import Conditioned, LanguageModel, Response, writer_of
from fedvpa.alignment.sampling import Sampling
from fedvpa.backbone.models import cache_dir
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_bytes
from fedvpa.preferences.schema import Prompt, as_prompt
from fedvpa.selector import Selector
from fedvpa.selector_files import is_hub_name
from fedvpa.user import User

FORMAT = 1
INFO, ADAPTER, ADAPTER_CONFIG, SELECTOR = "policy.json", "adapter_model.safetensors", "adapter_config.json", "selector"
_REMEDY = "give the folder of a finished `fedvpa align`"

Device = Literal["auto", "cpu", "cuda"]


class PolicyInfo(BaseModel):
    """``policy.json``: all of a policy but its tensors.

    Attributes:
        format, version: of the file, and of the package that wrote it.
        base: the language model under the adapter; base_identity: its fingerprint and dtype.
        conditioned: how latents enter it, None for a policy without.
        temperature, top_k, top_p, max_new_tokens: how it writes unless told otherwise.
        adapter_hash: sha256 of the adapter.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    version: str
    base: PolicyConfig
    base_identity: str
    conditioned: Conditioned | None
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    adapter_hash: str


@dataclass(frozen=True)
class PersonalizedPolicy:
    """A language model, conditioned on latents, with the selector that aligned it.

    Attributes:
        model: writes; its ``identity`` names base, dtype and adapter.
        selector: infers users, and chooses with ``best_of``.
        info: everything else.
    """

    model: LanguageModel
    selector: Selector
    info: PolicyInfo

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        user: User | None = None,
        *,
        prototype: int | None = None,
        blend: Mapping[int, float] | None = None,
        best_of: int = 1,
        base: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ) -> str:
        """A response in the manner of one user, prototype or blend; without any of them, of nobody in particular.

        Args:
            prompt: text (one user turn) or messages.
            user: inferred with this policy's selector (`selector.infer_user`, `fedvpa personalize`).
            blend: prototypes with weights that sum to 1.
            best_of: write so many responses and return the one that the selector ranks first.
            base: let the untrained language model write; only ``best_of`` then knows whom it is for.
            temperature: 0 is greedy. seed: the same seed gives the same response.

        Raises:
            UserError: more than one of user, prototype and blend; no such prototype; a user of another model.
        """
        target = self.target(user, prototype, blend)
        how = Sampling(self.info.temperature if temperature is None else temperature, self.info.top_k, self.info.top_p)
        longest = max_new_tokens or self.info.max_new_tokens
        latent = None if base or self.info.conditioned is None else point_of(target)
        requests = [Request(as_prompt(prompt), number, latent) for number in range(best_of)]
        with self.writer(base) as model:
            ids = model.encode([r.prompt for r in requests], latent is not None)
            z = None if latent is None else torch.tensor([latent] * best_of)
            u = torch.stack([uniforms(seed, longest, r) for r in requests])
            written = model.write(ids, z, u, how)
        return self.choose(requests[0].prompt, written, target).text

    def choose(self, prompt: Prompt, responses: Sequence[Response], user: User) -> Response:
        """The response that the selector ranks first for a user; one without text comes last."""
        written = {r.text: r for r in responses if r.text}
        if len(written) < 2:
            return next(iter(written.values()), responses[0])
        messages = [m._asdict() for m in prompt]
        return written[self.selector.rank(messages, list(written), user)[0][0]]

    def target(self, user: User | None, prototype: int | None, blend: Mapping[int, float] | None) -> User:
        """Whom a response is for."""
        if sum(x is not None for x in (user, prototype, blend)) > 1:
            raise UserError("user, prototype and blend exclude each other", "give one of them", field="user")
        if prototype is not None:
            return self.selector.blend({prototype: 1.0})
        if blend is not None:
            return self.selector.blend(blend)
        return self.selector.known(user)

    @contextlib.contextmanager
    def writer(self, base: bool = False) -> Iterator[LanguageModel]:
        """The model that writes: the policy, or (``base``) the language model as it was before."""
        if base and isinstance(self.model.lm, PeftModel):
            with self.model.lm.disable_adapter():
                yield replace(self.model, identity=self.info.base_identity)
        else:
            yield self.model

    # Files ---------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: Device = "auto", revision: str | None = None
    ) -> PersonalizedPolicy:
        """Loads a policy from the folder of a finished `fedvpa align`, or from the Hub.

        Raises:
            UserError: nothing there, damaged files, or a base model that is missing or another one.
        """
        folder = _folder(pretrained_model_name_or_path, revision)
        path = folder / INFO
        if not path.is_file() or not (folder / ADAPTER).is_file():
            raise UserError("no policy here" if folder.is_dir() else "no such folder", _REMEDY, file=folder)
        try:
            info = PolicyInfo.model_validate_json(path.read_bytes())
        except ValidationError as e:
            raise UserError(f"not a policy's description ({e.errors()[0]['msg']})", _REMEDY, file=path) from None
        if info.format != FORMAT:
            raise UserError(f"format {info.format}, this version reads {FORMAT}", "align again", file=path)
        if hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest() != info.adapter_hash:
            raise UserError("damaged, its sha256 is not adapter_hash", "align again", file=folder / ADAPTER)
        selector = Selector.from_pretrained(folder / SELECTOR)
        base = info.base.model_copy(update={"device": device})
        model = LanguageModel.load(base, cache_dir(selector.info.config), info.conditioned)
        if model.identity != info.base_identity:
            problem = "the language model here differs from the one that the policy was trained on"
            raise UserError(problem, "put the original back, or align again", file=path, field="base.model")
        # The adapter works in the base's dtype: casting to float32 and back costs more than it gives here.
        lm = PeftModel.from_pretrained(model.lm, folder, autocast_adapter_dtype=False).eval()
        identity = f"{info.base_identity} {info.conditioned} {info.adapter_hash}"
        return cls(replace(model, lm=lm, identity=identity), selector, info)

    @classmethod
    def untrained(cls, run: str | Path, *, device: Device = "auto", max_new_tokens: int = 96) -> PersonalizedPolicy:
        """The selector of a run with its own backbone, as it is, to write: ``best_of`` alone makes it personal.

        Raises:
            UserError: no such run, or a missing model.
        """
        selector = Selector.from_pretrained(run)
        backbone = selector.info.config.backbone
        base = PolicyConfig(model=writer_of(backbone), revision=backbone.revision, dtype=backbone.dtype, device=device)
        model = LanguageModel.load(base, cache_dir(selector.info.config))
        how = Sampling()
        info = PolicyInfo(
            format=FORMAT,
            version=fedvpa.__version__,
            base=base,
            base_identity=model.identity,
            conditioned=None,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            max_new_tokens=max_new_tokens,
            adapter_hash="",
        )
        return cls(model, selector, info)


def save_policy(
    folder: Path,
    trained: Any,
    selector: Selector,
    base: PolicyConfig,
    base_identity: str,
    conditioned: Conditioned | None,
    how: Sampling,
    max_new_tokens: int,
) -> PolicyInfo:
    """Writes a trained policy into a folder, ``policy.json`` last: without it nothing is there.

    Args:
        trained: PEFT's model; base: with the model's name; the others as in `PolicyInfo`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        trained.save_pretrained(temporary)
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.move(Path(temporary) / name, folder / name)
    (folder / SELECTOR).mkdir(exist_ok=True)
    selector._save_pretrained(folder / SELECTOR)
    info = PolicyInfo(
        format=FORMAT,
        version=fedvpa.__version__,
        base=base,
        base_identity=base_identity,
        conditioned=conditioned,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        max_new_tokens=max_new_tokens,
        adapter_hash=hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest(),
    )
    write_bytes(folder / INFO, (info.model_dump_json(indent=2) + "\n").encode())
    return info


def _folder(name: str | Path, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.exists() or not is_hub_name(str(name)):
        return path
    patterns = [INFO, ADAPTER, ADAPTER_CONFIG, f"{SELECTOR}/*"]
    try:
        return Path(cast(str, snapshot_download(str(name), revision=revision, allow_patterns=patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise UserError(f"no such folder, nor a policy {str(name)!r} on the Hub", _REMEDY, file=name) from None
