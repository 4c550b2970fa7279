"""A trained selector's parts and its predictions, from pairs and users that are read already."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvpa import inferring
from fedvpa.backbone.backbones import open_backbone
from fedvpa.backbone.features import TextEncoder
from fedvpa.backbone.memory import Overlay
from fedvpa.backbone.models import cache_dir as cache_folder
from fedvpa.backbone.store import OpenStore, Store
from fedvpa.errors import UserError
from fedvpa.inferring import Ask
from fedvpa.inputs import Rows, kind, rows_of, weights_of
from fedvpa.latents import gaussian_posterior, latent_of
from fedvpa.methods.base import Judging, Method, Pool, Predictor, ServerState, Setup
from fedvpa.methods.registry import create
from fedvpa.preferences.examples import Example, Question, examples_of
from fedvpa.preferences.schema import Pair, Prompt
from fedvpa.ranking import couples, mean_preferences
from fedvpa.rewards import log_odds
from fedvpa.selector_files import Parameters, SelectorInfo
from fedvpa.user import User, UserLike

DEVICES = ("auto", "cpu", "cuda")


class SelectorCore:
    """What `selector.Selector` consists of; its methods trust the texts that they are given.

    Args:
        parameters: the tensors, on the CPU.
        info: everything else.
        device: of the backbone: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        cache: as for `selector.Selector.from_pretrained`.
    """

    def __init__(
        self, parameters: Parameters, info: SelectorInfo, device: str = "auto", cache: bool | str | Path = False
    ) -> None:
        if not isinstance(device, str) or device not in DEVICES:
            raise UserError(f"is {kind(device)}", f"choose from {', '.join(DEVICES)}", field="device")
        if not isinstance(cache, (bool, str, Path)):
            raise UserError(f"is {kind(cache)}", "give True, False or a folder", field="cache")
        blob = parameters.to_bytes()
        self.parameters, self.device, self.cache = parameters, device, cache
        self.info = info.model_copy(update={"model_hash": hashlib.sha256(blob).hexdigest()})

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("backbone", "method")}

    def infer(self, examples: Sequence[Example], inference: str | None = None) -> User:
        """`infer_user` from examples that are read already (`preferences.examples.read_examples`)."""
        return inferring.infer(self, examples, inference).of(self)

    def infer_pairs(self, examples: Sequence[tuple[Pair, int]], inference: str | None = None) -> User:
        """`infer_user` from pairs with labels +1 (``a`` is preferred) or -1."""
        return inferring.infer_pairs(self, examples, inference).of(self)

    def update_user(self, user: UserLike, examples: Rows) -> User:
        """The user after further judgements; the earlier ones are not needed, as the posterior stands for them.

        ``user.update(examples)`` is the same.

        Args:
            examples: the further ones only, as for `infer_user`.

        Raises:
            UserError: a wrong example, a user of another model, or a method whose users hold no posterior to update.
        """
        return self.update(self.known(user), examples_of(rows_of(examples, "examples"), Path("examples")))

    def update(self, user: User, examples: Sequence[Example]) -> User:
        """`update_user` from examples that are read already."""
        return inferring.update(self, user, examples).of(self)

    def ask_questions(self, user: User | None, pool: Sequence[Question], n: int = 1) -> list[Ask]:
        """`ask` from questions that are read already (`preferences.examples.read_questions`)."""
        return inferring.ask(self, user, pool, n)

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

    def known(self, user: UserLike) -> User:
        """The user that is meant; refused if inferred with another model.

        A user of mean and variances only is that Gaussian, where the method predicts with whole posteriors.
        """
        if user is None:
            return self.infer_pairs([])
        if not isinstance(user, User):
            return self.blend(weights_of(user))
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

    def mean_preferences(self, prompt: Prompt, responses: Sequence[str], users: Sequence[User]) -> Tensor:
        """Each response's mean probability to be preferred to another of them, (users, n); alone, a response has 0.5.

        Raises:
            UserError: a user was inferred with another model.
        """
        pairs = [Pair(prompt, responses[i], responses[j]) for i, j in couples(len(responses))]
        p = self.preferences(pairs, users) if pairs else torch.zeros(len(users), 0)
        return mean_preferences(len(responses), p)

    def _check_rewards(self) -> None:
        if self.info.config.backbone.choice_logits:
            raise UserError(
                "the selector uses choice logits, which a single response does not have",
                "use `Selector.rank`, or train with backbone.choice_logits=false",
                field="backbone.choice_logits",
            )

    def _rewards(self, prompts: Sequence[Prompt], responses: Sequence[str], user: User) -> Tensor:
        """`rewards` of responses that are read already."""
        return self._rewards_by_user(prompts, responses, [""] * len(responses), {"": user})

    def _average_rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        return self._rewards(prompts, responses, self.known(None))

    def _rewards_by_user(
        self, prompts: Sequence[Prompt], responses: Sequence[str], names: Sequence[str], users: Mapping[str, User]
    ) -> Tensor:
        """Rewards (n,) of responses, each to the user of its name; all responses are encoded together."""
        self._check_rewards()
        found = torch.zeros(len(responses), dtype=self.dtype)
        if not responses:
            return found
        x = self.parameters.standardizer(self.backbone.encode_texts(prompts, responses)).to(self.dtype)
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            found[rows] = log_odds(self.predictor, x[rows], latent_of(users[name], self.dtype))
        return found

    # Users ------------------------------------------------------------------------------------------------------------

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
        if not isinstance(weights, Mapping):
            raise UserError(f"is {kind(weights)}", "write {0: 0.3, 1: 0.7}", field="blend")
        weights, centres = weights_of(weights, "blend"), self.centres.double()
        for k in weights:
            if not 0 <= k < len(centres):
                choices = f"choose from 0 to {len(centres) - 1}" if len(centres) else "use a selector with a latent"
                raise UserError(f"no prototype {k}", choices, field="prototype")
        if min(weights.values(), default=-1.0) < 0 or not math.isclose(sum(weights.values()), 1, abs_tol=1e-3):
            raise UserError("weights must not be negative, and sum to 1", "write 0:0.3,1:0.7", field="blend")
        mean, log_var = (
            sum((w * rows[k] for k, w in weights.items()), torch.zeros(centres.shape[-1], dtype=torch.float64))
            for rows in (centres, self.parameters.spread.double().log())
        )
        name = "+".join(f"{w:g}*prototype {k}" for k, w in weights.items()) if len(weights) > 1 else "prototype"
        user = User(
            mean=mean.tolist(), log_var=log_var.tolist(), pairs=0, model_hash=self.info.model_hash, inference=name
        )
        return self.known(user).of(self)

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

    # Parts ------------------------------------------------------------------------------------------------------------

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

    def open_backbone(self, open_store: OpenStore | None = None) -> TextEncoder:
        """`backbone`, with another place for its vectors (``selector.backbone = selector.open_backbone(...)``)."""
        config = self.info.config
        if config.output.cache and not Path(config.output.cache).expanduser().is_dir():
            config = config.model_copy(update={"output": config.output.model_copy(update={"cache": None})})
        folder = cache_folder(config) if isinstance(self.cache, bool) else Path(self.cache).expanduser()
        store: OpenStore = open_store or (Store if self.cache else Overlay)
        backbone = open_backbone(config.backbone, folder, self.device, store)
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
