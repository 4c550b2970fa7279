"""A trained selector for use: infer a user from a few examples, then compare and rank responses.

selector = Selector.from_pretrained("runs/synthetic-fedvpa-gp")
user = selector.infer_user([{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}])
selector.prefer("How are you?", "Fine.", "Fine, thanks for asking! And you?", user)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

import fedvpa
from fedvpa import inferring
from fedvpa.backbone.backbones import open_backbone
from fedvpa.backbone.features import TextEncoder
from fedvpa.backbone.models import cache_dir
from fedvpa.backbone.store import OpenStore, Store
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_bytes
from fedvpa.federation.moments import Standardizer
from fedvpa.inferring import Ask
from fedvpa.methods.base import Judging, Method, Pool, Predictor, ServerState, Setup
from fedvpa.methods.registry import create
from fedvpa.preferences.examples import Example, Question, examples_of, questions_of
from fedvpa.preferences.schema import NO_RATINGS, Pair, Prompt, as_prompt
from fedvpa.ranking import couples, mean_preferences, ranking
from fedvpa.rewards import EMPTY, RewardFunction, log_odds
from fedvpa.user import User, gaussian_posterior, latent_of

FORMAT = 1
WEIGHTS, INFO = "model.safetensors", "model.json"
_STATE = ("centroids", "spread", "shares")
_REMEDY = "give the folder of a finished run of `fedvpa train`"


class SelectorInfo(BaseModel):
    """``model.json``: all of a selector but its tensors.

    Attributes:
        format: version of the two files; version: of the package that wrote them.
        method: what trained it; config: the whole configuration of the run.
        features: D; clusters: M; groups: names of the true groups, where the data has them.
        backbone: identity of the features (`TextEncoder.identity`); others would be meaningless to this selector.
        default_inference: per context size the inference that validation users chose.
        rating_scale: mean and standard deviation of the training people's ratings; (0, 1) where nobody rated.
        model_hash: sha256 of ``model.safetensors``; a user belongs to one model.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    version: str
    method: str
    config: ExperimentConfig
    features: int
    clusters: int
    groups: tuple[str, ...]
    backbone: dict[str, Any]
    default_inference: dict[int, str]
    rating_scale: tuple[float, float] = NO_RATINGS
    model_hash: str = ""


@dataclass(frozen=True)
class Parameters:
    """A selector's tensors: theta, what the server knows of the clusters, and the standardiser. No user's posterior."""

    theta: Mapping[str, Tensor]
    centroids: Tensor
    spread: Tensor
    shares: Tensor
    standardizer: Standardizer

    @staticmethod
    def of(server: ServerState, standardizer: Standardizer) -> Parameters:
        return Parameters(server.theta, server.centroids, server.spread, server.shares, standardizer)

    def to_bytes(self) -> bytes:
        """In safetensors' format."""
        named = {f"theta.{k}": v for k, v in self.theta.items()}
        named |= {f"clusters.{k}": getattr(self, k) for k in _STATE}
        named |= {"standardizer.mean": self.standardizer.mean, "standardizer.scale": self.standardizer.scale}
        return safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in named.items()})

    @staticmethod
    def from_bytes(blob: bytes) -> Parameters:
        named = safetensors.torch.load(blob)
        theta = {k.removeprefix("theta."): v for k, v in named.items() if k.startswith("theta.")}
        standardizer = Standardizer(named["standardizer.mean"], named["standardizer.scale"])
        centroids, spread, shares = (named[f"clusters.{k}"] for k in _STATE)
        return Parameters(theta, centroids, spread, shares, standardizer)


class Selector(
    ModelHubMixin,
    library_name="fedvpa",
    paper_url="https://arxiv.org/abs/2605.30873",
    license="apache-2.0",
    tags=["preference-learning", "federated-learning", "reward-model"],
):
    """p(a > b | prompt, user) under one trained model.

    Args:
        parameters: the tensors, on the CPU.
        info: everything else.
    """

    def __init__(self, parameters: Parameters, info: SelectorInfo) -> None:
        blob = parameters.to_bytes()
        self.parameters = parameters
        self.info = info.model_copy(update={"model_hash": hashlib.sha256(blob).hexdigest()})
        # config.json, which the Hub expects beside a model; everything of ours is in model.json.
        self._hub_mixin_config = {"library_name": "fedvpa", "method": info.method, "format": info.format}

    # Use -----------------------------------------------------------------------------------------------------------

    def infer_user(self, examples: Sequence[Mapping[str, Any]], inference: str | None = None) -> User:
        """Infers a user from judgements of any kind, mixed freely, without training.

        Args:
            examples: choices (``prompt``, ``chosen``, ``rejected``, as in TRL's preference data; or ``prompt``, ``a``,
                ``b``, ``preferred``), votes (``prompt``, ``completion``, ``label``, as in its unpaired data; or
                ``vote``, 1 or -1) and ratings (``prompt``, ``text``, ``rating``, on the scale of the training data);
                see `preferences.examples`. A method that takes pairs only gets those that the judgements make.
            inference: how; by default what validation users chose for contexts of the nearest size.

        Raises:
            UserError: an example without one of the columns, with an empty text or two equal ones; or no pair, where
                the method takes pairs only.
        """
        return self.infer(examples_of(examples, Path("examples")), inference)

    def infer(self, examples: Sequence[Example], inference: str | None = None) -> User:
        """`infer_user` from examples that are read already (`preferences.examples.read_examples`)."""
        return inferring.infer(self, examples, inference)

    def infer_pairs(self, examples: Sequence[tuple[Pair, int]], inference: str | None = None) -> User:
        """`infer_user` from pairs with labels +1 (``a`` is preferred) or -1."""
        return inferring.infer_pairs(self, examples, inference)

    def update_user(self, user: User, examples: Sequence[Mapping[str, Any]]) -> User:
        """The user after further judgements; the earlier ones are not needed, as the posterior stands for them.

        Args:
            examples: the further ones only, as for `infer_user`.

        Raises:
            UserError: a wrong example, a user of another model, or a method whose users hold no posterior to update.
        """
        return self.update(user, examples_of(examples, Path("examples")))

    def update(self, user: User, examples: Sequence[Example]) -> User:
        """`update_user` from examples that are read already."""
        return inferring.update(self, user, examples)

    def ask(self, user: User | None, pool: Sequence[Mapping[str, Any]], n: int = 1) -> list[Ask]:
        """The n questions of a pool whose answers are expected to tell most about a user, in the order to ask them.

        With one question at a time, and the user inferred again after each, questions follow the answers. With several
        they are a fixed questionnaire (`acquisition.best_questions`); without a user it is a first one, for anybody.

        Args:
            user: whom to ask; None for somebody of whom nothing is known.
            pool: objects ``prompt, text``, to be answered by yes or no, or ``prompt, a, b``, to choose between; a
                method that takes pairs only needs pairs.

        Raises:
            UserError: a wrong question, a user of another model, or a selector without a latent.
        """
        return self.ask_questions(user, questions_of(pool, Path("pool")), n)

    def ask_questions(self, user: User | None, pool: Sequence[Question], n: int = 1) -> list[Ask]:
        """`ask` from questions that are read already (`preferences.examples.read_questions`)."""
        return inferring.ask(self, user, pool, n)

    def prefer(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        a: str,
        b: str,
        user: User | None = None,
    ) -> float:
        """p(a > b | prompt, user), the user's probability to prefer ``a``; without a user that of an unknown one."""
        return float(self.prefer_pairs([Pair(as_prompt(prompt), a, b)], user)[0])

    def prefer_pairs(self, pairs: Sequence[Pair], user: User | None = None) -> Tensor:
        """p(a > b) of many pairs, (pairs,).

        Raises:
            UserError: the user was inferred with another model.
        """
        return self.preferences(pairs, [self.known(user)])[0]

    def preferences(self, pairs: Sequence[Pair], users: Sequence[User]) -> Tensor:
        """p(a > b) of many pairs under many users, (users, pairs); the features are computed once.

        Raises:
            UserError: a user was inferred with another model.
        """
        latents = [latent_of(self.known(user), self.dtype) for user in users]
        predictor, index = self.predictor_of(pairs), torch.arange(len(pairs)).unsqueeze(0)
        return torch.stack([predictor.predict(z, index)[0] for z in latents])

    def known(self, user: User | None) -> User:
        """The user, or an unknown one; refused if inferred with another model.

        A user of mean and variances only is that Gaussian, where the method predicts with whole posteriors.
        """
        user = self.infer_pairs([]) if user is None else user
        if user.model_hash != self.info.model_hash:
            raise UserError(
                f"the user was inferred with another model ({user.model_hash[:12]}, not {self.info.model_hash[:12]})",
                "infer the user again (`fedvpa personalize`)",
                field="model_hash",
            )
        if len(user.mean) != self.dim:
            problem = f"has another length ({len(user.mean)}) than the model's latent ({self.dim})"
            raise UserError(problem, "infer the user again (`fedvpa personalize`)", field="mean")
        if self.judges and user.posterior is None:
            return user.model_copy(update={"posterior": gaussian_posterior(user.mean, user.log_var)})
        return user

    def rank(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        responses: Sequence[str],
        user: User | None = None,
    ) -> list[tuple[str, float]]:
        """Responses with scores, best first; the score is the mean probability to be preferred to another response."""
        scores = self.mean_preferences(as_prompt(prompt), responses, [self.known(user)])[0]
        return [(responses[i], score) for i, score in ranking(scores)]

    def mean_preferences(self, prompt: Prompt, responses: Sequence[str], users: Sequence[User]) -> Tensor:
        """Each response's mean probability to be preferred to another of them, (users, n); alone, a response has 0.5.

        Raises:
            UserError: a user was inferred with another model.
        """
        pairs = [Pair(prompt, responses[i], responses[j]) for i, j in couples(len(responses))]
        p = self.preferences(pairs, users) if pairs else torch.zeros(len(users), 0)
        return mean_preferences(len(responses), p)

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str], user: User | None = None) -> Tensor:
        """The user's reward for each response, which needs no other response to compare it with (method.md, section 8).

        It is the log-odds that the user prefers the response to one whose features are the training clients' mean: as
        s is a difference of two responses' utilities, the reward of `a` minus that of `b` is s(x, a, b; z). A user who
        is several latents with weights (particles) has the weighted mean of their rewards.

        Args:
            prompts, responses: n each; no response may be empty.

        Returns:
            (n,), in nats.

        Raises:
            UserError: the user was inferred with another model, or the selector uses choice logits, which belong to
                two responses and not to one.
        """
        user = self.known(user)
        if self.info.config.backbone.choice_logits:
            raise UserError(
                "the selector uses choice logits, which a single response does not have",
                "use `Selector.rank`, or train with backbone.choice_logits=false",
                field="backbone.choice_logits",
            )
        if not responses:
            return torch.zeros(0, dtype=self.dtype)
        x = self.parameters.standardizer(self.backbone.encode_texts(prompts, responses)).to(self.dtype)
        return log_odds(self.predictor, x, latent_of(user, self.dtype))

    def reward_function(self, user: User | None = None, empty_reward: float = EMPTY) -> RewardFunction:
        """A reward function for TRL's trainers (``reward_funcs=selector.reward_function(user)``), see `RewardFunction`.

        Raises:
            UserError: as in `rewards`.
        """
        user = self.known(user)
        return RewardFunction(partial(self.rewards, user=user), empty_reward)

    @property
    def centres(self) -> Tensor:
        """(M, d) the prototypes in use, or the clusters' centroids of a model without prototypes; none without z."""
        if not self.method.latent:
            return torch.zeros(0, 0, dtype=self.dtype)
        p = self.parameters
        return p.theta.get("prototypes", p.centroids)[: int((p.shares > 0).sum())]

    def blend(self, weights: Mapping[int, float]) -> User:
        """A user at a point between prototypes: the weighted mean of some of `centres`; one of them alone is itself.

        Where the method predicts with whole posteriors, the user is a Gaussian with that mean and the components'
        variances: of one component alone N(m_k, v_k).

        Raises:
            UserError: no such prototype, or weights that are negative or do not sum to 1.
        """
        centres = self.centres.double()
        for k in weights:
            if not 0 <= k < len(centres):
                choices = f"choose from 0 to {len(centres) - 1}" if len(centres) else "use a selector with a latent"
                raise UserError(f"no prototype {k}", choices, field="prototype")
        if min(weights.values(), default=-1.0) < 0 or abs(sum(weights.values()) - 1) > 1e-3:
            raise UserError("weights must not be negative, and sum to 1", "write 0:0.3,1:0.7", field="blend")
        mean, log_var = (
            sum((w * rows[k] for k, w in weights.items()), torch.zeros(centres.shape[-1], dtype=torch.float64))
            for rows in (centres, self.parameters.spread.double().log())
        )
        name = "+".join(f"{w:g}*prototype {k}" for k, w in weights.items()) if len(weights) > 1 else "prototype"
        user = User(
            mean=mean.tolist(), log_var=log_var.tolist(), pairs=0, model_hash=self.info.model_hash, inference=name
        )
        return self.known(user)

    @property
    def dim(self) -> int:
        """d, the latent's dimensions; 0 without one."""
        return self.parameters.centroids.shape[-1] if self.method.latent else 0

    @property
    def judges(self) -> bool:
        """Whether users are inferred from judgements as they are given, and hold a posterior that can be updated."""
        return isinstance(self.method, Judging)

    def inference_for(self, pairs: int) -> str:
        """The default inference for a context of that many pairs: that of the nearest size, the smaller of two."""
        sizes = sorted(self.info.default_inference)
        return self.info.default_inference[min(sizes, key=lambda size: abs(size - pairs))]

    # Parts ---------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters.spread.dtype

    @cached_property
    def method(self) -> Method:
        """The method, with its functions for inference."""
        config = self.info.config
        config = config.model_copy(update={"method": config.method.model_copy(update={"name": self.info.method})})
        setup = Setup(config, self.info.features, 0, self.info.clusters, self.dtype)
        method = create(self.info.method, setup)
        assert not hasattr(method, "fit")
        return method

    def predictor(self, pool: Pool) -> Predictor:
        """Inference and prediction over a pool of standardised features."""
        p, d = self.parameters, self.parameters.centroids.shape[-1]
        nobody = torch.zeros(0, d, dtype=self.dtype)
        none = torch.zeros(0, dtype=torch.int64)
        server = ServerState(
            round=0,
            theta=dict(p.theta),
            means=nobody,
            variances=nobody,
            counts=none,
            labels=none,
            centroids=p.centroids,
            spread=p.spread,
            shares=p.shares,
            clustered=True,
        )
        return self.method.predictor(server, pool)

    @cached_property
    def backbone(self) -> TextEncoder:
        """The frozen models that make features.

        Raises:
            UserError: it is not there, or it is not the one that the selector was trained with.
        """
        return self.open_backbone()

    def open_backbone(self, open_store: OpenStore = Store) -> TextEncoder:
        """`backbone`, with another place for its vectors (``selector.backbone = selector.open_backbone(...)``)."""
        config = self.info.config
        if config.output.cache and not Path(config.output.cache).expanduser().is_dir():
            config = config.model_copy(update={"output": config.output.model_copy(update={"cache": None})})
        backbone = open_backbone(config.backbone, cache_dir(config), open_store=open_store)
        differing = [k for k, v in backbone.identity.items() if self.info.backbone.get(k) != v]
        if differing:
            raise UserError(
                f"the backbone here differs from the one that the selector was trained with ({differing[0]})",
                "put the original back, or train again",
                field="backbone.model",
            )
        return backbone

    def predictor_of(self, pairs: Sequence[Pair]) -> Any:
        """`predictor` over the features of pairs."""
        if not pairs:
            empty = torch.zeros(0, 2, self.info.features, dtype=self.dtype)
            return self.predictor(Pool.of_pairs(empty))
        features = self.backbone.encode_pairs(pairs, progress=len(pairs) > 50)
        x = self.parameters.standardizer(features.items).to(self.dtype)
        base = None if features.base_logit is None else features.base_logit.to(self.dtype)
        return self.predictor(Pool(x, features.pairs, base))

    # Files, in the Hub's conventions -------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        write_bytes(save_directory / WEIGHTS, self.parameters.to_bytes())
        write_bytes(save_directory / INFO, (self.info.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Loads a selector from a run folder, from a folder of `save_pretrained`, or from the Hub.

        The arguments are `huggingface_hub.ModelHubMixin.from_pretrained`'s.

        Raises:
            UserError: nothing there, damaged files, or files of another format.
        """
        name, folder = str(pretrained_model_name_or_path), Path(pretrained_model_name_or_path)
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
            return cls._from_folder(folder.expanduser())
        try:
            files = [
                hf_hub_download(
                    name,
                    filename,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
                for filename in (WEIGHTS, INFO)
            ]
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
            raise UserError(f"no such run, nor a selector {name!r} on the Hub", _REMEDY, file=name) from None
        return cls._from_folder(Path(files[0]).parent)

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        if not folder.is_dir():
            raise UserError("no such run", _REMEDY, file=folder)
        path = folder / INFO
        if not path.is_file() or not (folder / WEIGHTS).is_file():
            raise UserError("no trained selector here", _REMEDY, file=folder)
        try:
            info = SelectorInfo.model_validate_json(path.read_bytes())
        except ValidationError as e:
            first = e.errors()[0]
            field = ".".join(str(p) for p in first["loc"]) or None
            raise UserError(f"not a selector's description ({first['msg']})", _REMEDY, file=path, field=field) from None
        if info.format != FORMAT:
            raise UserError(f"format {info.format}, this version reads {FORMAT}", "train again", file=path)
        blob = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(blob).hexdigest() != info.model_hash:
            raise UserError("damaged, its sha256 is not model_hash", "train again", file=folder / WEIGHTS)
        try:
            selector = cls(Parameters.from_bytes(blob), info)
        except (SafetensorError, KeyError):
            raise UserError("does not hold a selector", "train again", file=folder / WEIGHTS) from None
        expected = selector.method.init_server(torch.Generator()).theta
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in selector.parameters.theta.items()}:
            problem = f"the parameters are not those that version {fedvpa.__version__} expects (it is {info.version}'s)"
            raise UserError(problem, "train again", file=folder / WEIGHTS)
        return selector
