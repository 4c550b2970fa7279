"""Responses in batches: reproducible, cached by content, and resumable batch by batch.

Each batch is one shard, a JSON Lines file whose name is the hash of everything that its responses depend on. A shard is
written whole or not at all; one that is there is never generated again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from fedvpa.alignment.language import LanguageModel, Response, digest
from fedvpa.alignment.progress import TokenProgress
from fedvpa.alignment.sampling import Sampling
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text
from fedvpa.preferences.schema import Prompt
from fedvpa.preferences.seeding import generator

_FORMAT = 1  # counts up whenever the same request would get another response


class Request(NamedTuple):
    """A response that is wanted.

    Attributes:
        prompt: the dialogue.
        number: tells several responses to one prompt apart; each has random numbers of its own.
        latent: under which z, or None for no latent.
    """

    prompt: Prompt
    number: int = 0
    latent: tuple[float, ...] | None = None


class Writing(NamedTuple):
    """How responses are written: seed, sampling, longest response in tokens, responses in one batch."""

    seed: int
    how: Sampling
    longest: int
    batch: int


def respond(
    model: LanguageModel, requests: Sequence[Request], writing: Writing, folder: Path, console: Console, label: str
) -> list[Response]:
    """One response per request, from the shards in ``folder`` where they are there.

    The draw of a response depends on (seed, prompt, number) only, so two latents, or a model and its base, are compared
    under the same random numbers.

    Raises:
        UserError: the folder cannot be written, or a prompt cannot be rendered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain, conditioned = (
        dict(zip(prompts, model.encode(prompts, wanted), strict=True))
        for wanted in (False, True)
        for prompts in [list(dict.fromkeys(r.prompt for r in requests if (r.latent is not None) == wanted))]
    )
    encoded = [(plain if r.latent is None else conditioned)[r.prompt] for r in requests]
    order = sorted(range(len(requests)), key=lambda i: (requests[i].latent is None, -len(encoded[i]), encoded[i], i))
    found: list[Response | None] = [None] * len(requests)
    with TokenProgress(console, label, len(requests)) as progress:
        for batch in _batches(order, requests, writing.batch):
            mine = [requests[i] for i in batch]
            path = folder / f"{_key(model, mine, writing)[:32]}.jsonl"
            responses = _read(path, len(batch))
            fresh = responses is None
            if responses is None:
                u = torch.stack([uniforms(writing.seed, writing.longest, r) for r in mine])
                z = None if mine[0].latent is None else torch.tensor([r.latent for r in mine])
                responses = model.write([encoded[i] for i in batch], z, u, writing.how, progress.count)
                rows = [json.dumps(r._asdict(), ensure_ascii=False) + "\n" for r in responses]
                write_text(path, "".join(rows))
            for i, response in zip(batch, responses, strict=True):
                found[i] = response
            progress.finish(len(batch), fresh)
    return [r for r in found if r is not None]


def capped_share(responses: Iterable[Response]) -> float:
    """Share of the responses that were cut at the longest length."""
    flags = [r.capped for r in responses]
    return sum(flags) / max(len(flags), 1)


def _batches(order: Sequence[int], requests: Sequence[Request], size: int) -> list[list[int]]:
    """Batches of similar length; a batch has latents or has none."""
    batches: list[list[int]] = []
    for i in order:
        full = not batches or len(batches[-1]) >= size
        if full or (requests[batches[-1][-1]].latent is None) != (requests[i].latent is None):
            batches.append([])
        batches[-1].append(i)
    return batches


def _key(model: LanguageModel, requests: Sequence[Request], writing: Writing) -> str:
    wanted = [[[list(m) for m in r.prompt], r.number, r.latent] for r in requests]
    return digest(_FORMAT, model.identity, writing.seed, list(writing.how), writing.longest, wanted)


def uniforms(seed: int, longest: int, request: Request) -> Tensor:
    """(longest) the random numbers of a response; the beginning is the same however long it may get."""
    prompt = digest([list(m) for m in request.prompt])
    return torch.rand(longest, generator=generator(seed, "response", prompt, request.number), dtype=torch.float64)


def _read(path: Path, expected: int) -> list[Response] | None:
    """A shard's responses, or None where there is none.

    Raises:
        UserError: the file is no shard.
    """
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        responses = [Response(str(r["text"]), int(r["tokens"]), bool(r["capped"])) for r in rows]
    except (ValueError, KeyError, TypeError):
        responses = []
    if len(responses) != expected:
        raise UserError("damaged", "delete it; it will be generated again", file=path)
    return responses
