"""A trained selector for use: infer a user from a few examples, then compare and rank responses.

selector = Selector.from_pretrained("runs/synthetic-fedvpa-gp")
user = selector.infer_user([{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}])
selector.prefer("How are you?", "Fine.", "Fine, thanks for asking! And you?", user)

Methods for people take texts and rows as they come (`fedvpa.inputs`); those that take `Pair`, `Prompt` and `Example`
are for the rest of the package, and trust what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, overload

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

import fedvpa
from fedvpa.errors import UserError
from fedvpa.inferring import Ask
from fedvpa.inputs import Rows, is_one, kind, listed, name_of, number_of, rows_of, whose
from fedvpa.preferences.arguments import read_items, read_pair, read_pairs, read_prompt
from fedvpa.preferences.examples import examples_of, questions_of
from fedvpa.ranking import ranking, tied
from fedvpa.rewards import EMPTY, RewardFunction, reward_name
from fedvpa.selector_card import card_of
from fedvpa.selector_core import SelectorCore
from fedvpa.selector_files import (
    FORMAT,
    INFO,
    REMEDY,
    WEIGHTS,
    Parameters,
    SelectorInfo,
    is_hub_name,
    only_name,
    read_files,
    with_places,
    write_files,
)
from fedvpa.user import User, UserLike

__all__ = ["FORMAT", "INFO", "WEIGHTS", "Parameters", "Selector", "SelectorInfo"]


class Selector(
    SelectorCore,
    ModelHubMixin,
    library_name="fedvpa",
    paper_url="https://arxiv.org/abs/2605.30873",
    license="apache-2.0",
    tags=["preference-learning", "federated-learning", "reward-model"],
):
    """p(a > b | prompt, user) under one trained model.

    It can be copied and pickled, also after use: its model and its cache are opened again where they are needed.

    Args:
        parameters: the tensors, on the CPU.
        info: everything else.
        device: of the backbone: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        cache: as for `from_pretrained`.
    """

    def __init__(
        self, parameters: Parameters, info: SelectorInfo, device: str = "auto", cache: bool | str | Path = False
    ) -> None:
        super().__init__(parameters, info, device, cache)
        # config.json, which the Hub expects beside a model; everything of ours is in model.json.
        self._hub_mixin_config = {"library_name": "fedvpa", "method": info.method, "format": info.format}

    def __repr__(self) -> str:
        names = ", ".join(Path(name).name for name in self.info.config.backbone.models)
        return f"Selector({self.info.method} on {names}, {self.dim} dimensions, model {self.info.model_hash[:12]})"

    # Use --------------------------------------------------------------------------------------------------------------

    def infer_user(self, examples: Rows, inference: str | None = None) -> User:
        """Infers a user from judgements of any kind, mixed freely, without training.

        Args:
            examples: rows (one, a list, a DataFrame or a Dataset) that are choices (``prompt``, ``chosen``,
                ``rejected``, as in TRL's preference data; or ``prompt``, ``a``, ``b``, ``preferred``), votes
                (``prompt``, ``completion``, ``label``, as in its unpaired data; or ``vote``, 1 or -1) or ratings
                (``prompt``, ``text``, ``rating``, on the scale of the training data); see `preferences.examples`.
                A method that takes pairs only gets those that the judgements make.
            inference: how; by default what validation users chose for contexts of the nearest size.

        Raises:
            UserError: an example without one of the columns, with an empty text or two equal ones; or no pair, where
                the method takes pairs only.
        """
        return self.infer(examples_of(rows_of(examples, "examples"), Path("examples")), inference)

    def infer_users(self, table: Rows, column: str = "user_id", inference: str | None = None) -> dict[str, User]:
        """Infers every user of a table of judgements.

        Args:
            table: rows as for `infer_user`, of many users.
            column: that says whose judgement a row is.

        Returns:
            Each user under the name in that column, in the order of first appearance.

        Raises:
            UserError: as `infer_user`; or a row without a name.
        """
        rows: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for number, row in enumerate(rows_of(table, "users"), 1):
            if column not in row:
                raise UserError("missing column", "name it with column=", file="users", line=number, field=column)
            rows.setdefault(name_of(row[column], f"{column}[{number - 1}]"), []).append((number, row))
        found = {}
        for name, own in rows.items():
            try:
                found[name] = self.infer_user([row for _, row in own], inference)
            except UserError as e:
                line = e.line and own[e.line - 1][0]
                raise UserError(e.problem, e.remedy, file=f"users ({name})", line=line, field=e.field) from None
        return found

    def ask(self, user: UserLike, pool: Rows, n: int = 1) -> list[Ask]:
        """The n questions of a pool whose answers are expected to tell most about a user, in the order to ask them.

        With one question at a time, and the user inferred again after each, questions follow the answers. With several
        they are a fixed questionnaire (`acquisition.best_questions`); without a user it is a first one, for anybody.

        Args:
            user: whom to ask; None for somebody of whom nothing is known.
            pool: rows ``prompt, text``, to be answered by yes or no, or ``prompt, a, b``, to choose between; a
                method that takes pairs only needs pairs.

        Raises:
            UserError: a wrong question, a user of another model, or a selector without a latent.
        """
        rows = rows_of(pool, "pool")
        return self.ask_questions(self.known(user), questions_of(rows, Path("pool")), number_of(n, "n"))

    @overload
    def prefer(self, prompt: Any, a: str, b: str, user: UserLike = None) -> float: ...
    @overload
    def prefer(self, prompt: Any, a: Any, b: Any, user: UserLike = None) -> Any: ...
    def prefer(self, prompt: Any, a: Any, b: Any, user: UserLike = None) -> Any:
        """p(a > b | prompt, user), the user's probability to prefer ``a``; without a user that of an unknown one.

        Args:
            prompt: a text or messages; with many pairs one for all, or one each.
            a, b: two responses, or two lists of as many.
            user: whose preference: a `User`, the number of a prototype, or a blend such as ``{0: 0.3, 1: 0.7}``.

        Returns:
            A probability; with lists of responses a list of them.

        Raises:
            UserError: a text that is none or empty, lists of different lengths, or a user of another model.
        """
        known = self.known(user)
        if is_one(a) and is_one(b):
            return float(self.prefer_pairs([read_pair(prompt, a, b)], known)[0])
        return self.prefer_pairs(read_pairs(prompt, a, b), known).tolist()

    def score(self, pairs: Rows, user: UserLike = None) -> list[float]:
        """p(a > b) of each row ``prompt, a, b`` of a table; see `prefer`."""
        rows = rows_of(pairs, "pairs")
        for number, row in enumerate(rows, 1):
            for column in ("prompt", "a", "b"):
                if column not in row:
                    remedy = f"give every row a {column!r}"
                    raise UserError("missing column", remedy, file="pairs", line=number, field=column)
        prompts, a, b = ([row[column] for row in rows] for column in ("prompt", "a", "b"))
        return self.prefer_pairs(read_pairs(prompts, a, b), self.known(user)).tolist()

    def rank(self, prompt: Any, responses: Sequence[str], user: UserLike = None) -> list[tuple[str, float]]:
        """Responses with scores, best first; the score is the mean probability to be preferred to another response.

        Raises:
            UserError: as `prefer`; or the responses are no list of texts.
        """
        known, before = self.known(user), read_prompt(prompt)
        given = listed(responses, "responses", "give a list of texts")
        items = read_items([prompt] * len(given), given)
        if any(item.prompt != before for item in items):
            raise UserError("do not all answer this prompt", "give texts, or the last turns alone", field="responses")
        texts = [item.text for item in items]
        scores = tied(self.mean_preferences(before, texts, [known])[0], texts)
        return [(given[i], score) for i, score in ranking(scores)]

    def rewards(self, prompts: Any, responses: Sequence[str], user: UserLike = None) -> Tensor:
        """The user's reward for each response, which needs no other response to compare it with (method.md, section 8).

        It is the log-odds that the user prefers the response to one whose features are the training clients' mean: as
        s is a difference of two responses' utilities, the reward of `a` minus that of `b` is s(x, a, b; z). A user who
        is several latents with weights (particles) has the weighted mean of their rewards.

        Args:
            prompts: one for all responses, or one each.
            responses: n; none may be empty.

        Returns:
            (n,), in nats.

        Raises:
            UserError: as `prefer`; or the selector uses choice logits, which belong to two responses and not to one.
        """
        known, items = self.known(user), read_items(prompts, responses)
        return self._rewards([item.prompt for item in items], [item.text for item in items], user=known)

    def reward_function(
        self,
        user: UserLike = None,
        empty_reward: float = EMPTY,
        *,
        users: Mapping[Any, UserLike] | Rows | None = None,
        column: str | None = "user_id",
        name: str | None = None,
        standardised: bool = False,
    ) -> RewardFunction:
        """A reward function for TRL's trainers (``reward_funcs=selector.reward_function(user)``), see `RewardFunction`.

        Args:
            user: whose rewards, for every row alike.
            empty_reward: of an empty completion.
            users: for rewards of each row's own user: users under their ids, or a table of everybody's judgements, from
                which they are inferred (`infer_users`).
            column: of the trainer's data that names a row's user; None: no such column is looked at.
            name: under which trainers log it; by default one that tells different users and selectors apart.
            standardised: rewards with mean 0 and variance 1 over the training pairs' responses, each for its own user.

        Raises:
            UserError: as in `rewards` and `infer_users`; both user and users are given; or the scale is not known.
        """
        self._check_rewards()
        scale = self.reward_scale if standardised else (0.0, 1.0)
        if users is None:
            known = self.known(user)
            name = name or reward_name("selector", whose(user), [self.info.model_hash, known.latent(), empty_reward])
            return RewardFunction(
                partial(self._rewards, user=known),
                empty_reward,
                name,
                column=column,
                chosen=user is not None,
                scale=scale,
            )
        if user is not None:
            raise UserError("user and users exclude each other", "give one of them", field="users")
        if column is None:
            raise UserError("is None, but it names each row's user", "give the column's name", field="column")
        if isinstance(users, Mapping):
            each = {name_of(key, "users"): self.known(one) for key, one in users.items()}
        else:
            each = self.infer_users(users, column)
        if not each:
            raise UserError("holds nobody", "give users under their ids, or a table of judgements", field="users")
        latents = {key: one.latent() for key, one in each.items()}
        name = name or reward_name("selector", "users", [self.info.model_hash, latents, column, empty_reward])
        return RewardFunction(
            self._average_rewards,
            empty_reward,
            name,
            partial(self._rewards_by_user, users=each),
            frozenset(each),
            column,
            scale=scale,
        )

    @property
    def reward_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pairs' bounded rewards.

        Raises:
            UserError: not known: trained where the data were not, with privacy, or with choice logits.
        """
        if self.info.reward_scale is None:
            problem = "the selector does not know its training rewards (a deployment's, or trained with privacy)"
            raise UserError(problem, "leave it out, and let the trainer standardise", field="standardised")
        return self.info.reward_scale

    # Files, in the Hub's conventions ----------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path) -> None:
        write_files(save_directory, self.parameters, self.info)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Writes the selector with a model card to a repository on the Hub.

        Places on this machine are not told: of a backbone that is a local folder only its name goes along, and whoever
        loads the selector names the folder (``from_pretrained(..., backbone=FOLDER)``).

        Args:
            options: as for `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            The address of the commit.
        """
        public = Selector(self.parameters, with_places(self.info, only_name))
        return super(Selector, public).push_to_hub(repo_id, **options)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The README.md beside a selector's files."""
        return card_of(self.info)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str = "auto",
        cache: bool | str | Path = False,
        backbone: str | Path | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Loads a selector from a run folder, from a folder of `save_pretrained`, or from the Hub.

        Args:
            pretrained_model_name_or_path: a folder, or OWNER/NAME on the Hub. Where the folder OWNER is here, and for
                ``runs/NAME``, it is a folder, and the Hub is not asked.
            device: of the backbone: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
            cache: features of texts are read from the cache folder where it has them. New ones are kept in memory only,
                the last 256 MiB of them; with True they go to the cache folder, with a path to that folder.
            backbone: where the backbone's folder lies, if it was one and is not where training had it.
            force_download, token, cache_dir, local_files_only, revision: `huggingface_hub.hf_hub_download`'s.

        Raises:
            UserError: nothing there, damaged files, or files of another format.
        """
        if not isinstance(pretrained_model_name_or_path, (str, Path)) or not str(pretrained_model_name_or_path):
            raise UserError(f"is {kind(pretrained_model_name_or_path)}", REMEDY, field="pretrained_model_name_or_path")
        name, folder = str(pretrained_model_name_or_path), Path(pretrained_model_name_or_path).expanduser()
        if folder.exists() or not is_hub_name(name):
            return cls._from_folder(folder, device, cache, backbone)
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
            raise UserError(f"no such run, nor a selector {name!r} on the Hub", REMEDY, file=name) from None
        return cls._from_folder(Path(files[0]).parent, device, cache, backbone)

    @classmethod
    def _from_folder(cls, folder: Path, device: str, cache: bool | str | Path, backbone: str | Path | None) -> Self:
        parameters, info = read_files(folder)
        if backbone is not None:
            place = info.config.backbone.model_copy(update={"model": str(Path(backbone).expanduser())})
            info = info.model_copy(update={"config": info.config.model_copy(update={"backbone": place})})
        selector = cls(parameters, info, device, cache)
        expected = selector.method.init_server(torch.Generator()).theta
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in parameters.theta.items()}:
            problem = f"the parameters are not those that version {fedvpa.__version__} expects (it is {info.version}'s)"
            raise UserError(problem, "train again", file=folder / WEIGHTS)
        return selector
