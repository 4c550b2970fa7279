"""Work on many small matrices, block by block: a block stays in the cache, and every core has one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def each(function: Callable[[Part], Result], parts: list[Part]) -> list[Result]:
    """function(part) of every part, in as many threads as torch uses.

    torch factorises a batch of matrices one after another in one thread. Its operations release the interpreter, so
    that threads of Python make up for that. Each of them computes alone; the results do not depend on their number.
    """
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    if threads == 1 or len(parts) == 1:
        return [function(part) for part in parts]

    def run(part: Part) -> Result:
        with torch.set_grad_enabled(gradients):  # a thread has a grad mode of its own
            return function(part)

    with ThreadPoolExecutor(min(threads, len(parts)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = list(pool.map(run, parts))
    # The number holds for the thread that sets it, and for threads that start later.
    torch.set_num_threads(threads)
    return results
