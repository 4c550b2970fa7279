"""The queue and its thread: what is merged, what is refused, and who is harmed by whom."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvpa import Selector, UserError
from fedvpa.apps.server import work as work_module
from fedvpa.apps.server.batching import Batcher
from fedvpa.apps.server.errors import ApiError
from fedvpa.apps.server.settings import Settings
from fedvpa.apps.server.work import SMALL, Abandoned, Compare, Infer, Reward, Scorer, Work
from fedvpa.preferences.examples import Example
from fedvpa.preferences.schema import Pair, as_prompt

FAST = {"batch_wait": 0.05, "timeout": 5.0}


class Model:
    """Doubles numbers; a text is a mistake, a gate lets a batch pass."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = True

    def __call__(self, works: Sequence[Any], wanted: Callable[[], bool] = lambda: True) -> list[Any]:
        self.batches.append(list(works))
        self.gate.wait(10)
        self.asked = wanted()
        for work in works:
            if work == "mistake":
                raise UserError("a mistake", field="text")
            if work == "bug":
                raise ZeroDivisionError
        return [2 * work for work in works]


@pytest.fixture
def model() -> Model:
    return Model()


def run(model: Model, talk: Callable[[Batcher], Coroutine[Any, Any, Any]], **limits: Any) -> Any:
    batcher = Batcher(model, lambda work: 10, Settings(**{**FAST, **limits}))
    batcher.start()
    try:
        return asyncio.run(talk(batcher))
    finally:
        model.gate.set()
        batcher.close()


def gathered(works: Sequence[Any]) -> Callable[[Batcher], Coroutine[Any, Any, list[Any]]]:
    async def talk(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*map(batcher.submit, works), return_exceptions=True)

    return talk


def test_what_comes_together_is_one_batch(model: Model) -> None:
    assert run(model, gathered([1, 2, 3])) == [2, 4, 6]
    assert model.batches == [[1, 2, 3]]


def test_a_batch_has_a_bound_in_requests_and_in_characters(model: Model) -> None:
    assert run(model, gathered(range(7)), batch_requests=3) == [0, 2, 4, 6, 8, 10, 12]
    assert [len(b) for b in model.batches] == [3, 3, 1]
    model.batches.clear()
    run(model, gathered(range(5)), batch_chars=25)
    assert [len(b) for b in model.batches] == [2, 2, 1]
    model.batches.clear()
    run(model, gathered(range(2)), batch_chars=5)  # one that is too large by itself still goes through
    assert [len(b) for b in model.batches] == [1, 1]


def test_one_request_at_a_time(model: Model) -> None:
    run(model, gathered(range(4)), batch_requests=1)
    assert model.batches == [[0], [1], [2], [3]]


def test_a_mistake_harms_nobody_else(model: Model) -> None:
    found = run(model, gathered([1, "mistake", 2, "bug", 3]))
    assert [found[0], found[2], found[4]] == [2, 4, 6]
    assert isinstance(found[1], UserError)
    assert isinstance(found[3], ZeroDivisionError)


def test_the_thread_outlives_mistakes(model: Model) -> None:
    async def talk(batcher: Batcher) -> list[Any]:
        first = await gathered(["bug"])(batcher)
        return first + await gathered([5])(batcher)

    found = run(model, talk)
    assert isinstance(found[0], ZeroDivisionError)
    assert found[1] == 10


def test_a_full_queue_refuses_and_says_when_to_come_back(model: Model) -> None:
    async def talk(batcher: Batcher) -> list[Any]:
        model.gate.clear()
        first = asyncio.create_task(batcher.submit(0))
        while not model.batches:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0.01)
        refused = await gathered([4])(batcher)
        model.gate.set()
        return [await first, *await asyncio.gather(*waiting), *refused]

    *answered, refused = run(model, talk, queue=3)
    assert answered == [0, 2, 4, 6]
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 30


def test_too_slow_is_504_and_what_waited_is_not_computed(model: Model) -> None:
    async def talk(batcher: Batcher) -> list[Any]:
        model.gate.clear()
        running = asyncio.create_task(batcher.submit(1))
        while not model.batches:
            await asyncio.sleep(0.001)
        late = await asyncio.gather(running, batcher.submit(2), return_exceptions=True)
        model.gate.set()
        return [*late, await batcher.submit(3)]

    one, two, three = run(model, talk, timeout=0.2)
    assert (one.status, two.status, three) == (504, 504, 6)
    assert model.batches == [[1], [3]]


def test_the_model_hears_that_nobody_waits(model: Model) -> None:
    async def talk(batcher: Batcher) -> None:
        model.gate.clear()
        with pytest.raises(ApiError):
            await batcher.submit(1)
        model.gate.set()
        while model.asked:
            await asyncio.sleep(0.001)

    run(model, talk, timeout=0.1)
    assert model.asked is False


def test_closing_finishes_the_queue_and_then_refuses(model: Model) -> None:
    async def talk(batcher: Batcher) -> list[Any]:
        model.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        refused = await gathered([9])(batcher)
        model.gate.set()
        await closing
        return [*await asyncio.gather(*tasks), *refused]

    *answered, refused = run(model, talk, batch_requests=1)
    assert answered == [0, 2, 4, 6]
    assert refused.status == 503


def test_a_model_that_cannot_be_loaded() -> None:
    def broken() -> None:
        raise UserError("no such model", field="backbone.model")

    batcher = Batcher(Model(), lambda _: 1, Settings(), warm=broken)

    async def talk() -> list[Any]:
        first = await asyncio.gather(batcher.submit(1), return_exceptions=True)
        return [*first, *await asyncio.gather(batcher.submit(2), return_exceptions=True)]

    assert [e.status for e in asyncio.run(talk())] == [503, 503]
    assert isinstance(batcher.failure, UserError)
    assert not batcher.ready.is_set()


def test_a_long_queue_is_emptied_in_order_and_fairly(model: Model) -> None:
    done: list[int] = []

    async def one(batcher: Batcher, i: int) -> None:
        await batcher.submit(i)
        done.append(i)

    async def talk(batcher: Batcher) -> None:
        await asyncio.gather(*(one(batcher, i) for i in range(50)))

    run(model, talk, batch_requests=8)
    assert done == list(range(50))


# With a selector -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorer(finished: Path) -> Scorer:
    return Scorer(Selector.from_pretrained(finished), 2**24, 2000)


@pytest.fixture(scope="module")
def works(scorer: Scorer) -> list[Work]:
    one, two = scorer.selector.blend({0: 1.0}), scorer.selector.blend({1: 1.0})
    several = scorer.selector.infer_pairs([(Pair(as_prompt("Q"), "aa", "b"), 1)], "mixture")
    pairs = [Pair(as_prompt(f"Question {i}"), f"Some answer {i}", f"No {i}") for i in range(4)]
    return [
        Compare(tuple(pairs[:3]), one),
        Compare((pairs[0],), two),
        Compare((pairs[3], pairs[0]), several),
        Reward(tuple(p.prompt for p in pairs), tuple(p.a for p in pairs), one),
        Reward((pairs[0].prompt,), ("else",), two),
        Infer((Example.choice(pairs[1], 1), Example.choice(pairs[2], -1)), None),
        Compare((pairs[1],), one),
    ]


@given(st.permutations(range(7)), st.integers(1, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_result_depends_on_its_request_only(scorer: Scorer, works: list[Work], order: list[int], n: int) -> None:
    """In any order and with any company, a request gets what it gets alone."""
    found = scorer([works[i] for i in order[:n]])
    for i, result in zip(order[:n], found, strict=True):
        (alone,) = scorer([works[i]])
        if isinstance(works[i], Infer):
            assert result.mean == pytest.approx(alone.mean, abs=1e-5)
        else:
            assert result == pytest.approx(alone, abs=1e-5)


def test_equal_texts_are_encoded_once(finished: Path) -> None:
    scorer = Scorer(Selector.from_pretrained(finished), 2**24, 10_000)
    pair, user = Pair(as_prompt("Q"), "a", "b"), scorer.selector.blend({0: 1.0})
    work = Compare((pair, pair, Pair(as_prompt("Q"), "b", "a")), user)
    scorer([work, work])
    (store,) = scorer.stores
    assert (store.misses, store.hits, len(store)) == (2, 0, 2)
    assert scorer.cost(work) == 0
    assert scorer.cost(Compare((Pair(as_prompt("Q"), "a", "new"),), user)) == 4
    scorer([work])
    assert (store.misses, store.hits) == (2, 2)


def test_a_memory_smaller_than_a_batch_changes_nothing(finished: Path, works: list[Work], scorer: Scorer) -> None:
    small = Scorer(Selector.from_pretrained(finished), 500, 2000)
    for found, expected in zip(small(works), scorer(works), strict=True):
        if isinstance(expected, list):
            assert found == pytest.approx(expected, abs=1e-5)
    assert len(small.stores[0]) <= 1


def test_threads_are_for_what_is_large(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(Selector.from_pretrained(finished), 2**24, 2000, threads=2)
    user, seen = scorer.selector.blend({0: 1.0}), []

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            seen.append((name, torch.get_num_threads()))
            return function(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(scorer.selector.backbone, "encode_texts")
    watch(work_module, "stack_users")
    watch(work_module, "Pool")
    few = Compare((Pair(as_prompt("Q"), "a", "b"),), user)
    many = Compare(few.pairs * (SMALL + 1), user)
    scorer([few])
    scorer([many])
    assert seen == [
        *[("encode_texts", 2), ("stack_users", 1), ("Pool", 1)],
        *[("encode_texts", 2), ("stack_users", 1), ("Pool", 2)],
    ]
    assert torch.get_num_threads() == 1


def test_nobody_waits_between_two_pieces(finished: Path) -> None:
    scorer = Scorer(Selector.from_pretrained(finished), 2**24, chunk_chars=10)
    user = scorer.selector.blend({0: 1.0})
    pairs = tuple(Pair(as_prompt(f"Question {i}"), "an answer", "no") for i in range(5))
    asked = iter([True, True, False])
    with pytest.raises(Abandoned):
        scorer([Compare(pairs, user)], lambda: next(asked))
    assert len(scorer.stores[0]) == 2


def test_the_first_request_waits_a_moment_for_company(model: Model) -> None:
    async def talk(batcher: Batcher) -> float:
        began = time.monotonic()
        task = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        await asyncio.gather(task, batcher.submit(2))
        return time.monotonic() - began

    run(model, talk, batch_wait=0.2)
    assert model.batches == [[1, 2]]
