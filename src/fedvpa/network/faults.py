"""What went wrong in a training over a network, counted for the report and written down for the operator."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from fedvpa.evaluation.result_files import write_text

MEANING = {
    "silent": "clients did not answer in time",
    "failed": "clients answered with an error",
    "refused": "clients' uploads were held back by the clients themselves",
    "rejected": "clients' uploads were rejected on arrival",
    "unreachable": "times a client's node was not there when clients were sampled",
    "repeated": "rounds were asked again, for too few sound uploads",
    "late": "users came after round 0 and have no part in this training",
    "claimed": "users were claimed by a second node",
}


class Faults:
    """Counts per kind, and ``faults.jsonl``: a line per fault with round, kind, node, users and reason."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "faults.jsonl"
        self.counts: Counter[str] = Counter()
        if self.path.is_file():  # of the run that is being resumed
            for line in self.path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.counts[entry["kind"]] += max(1, len(entry["users"]))

    def add(
        self, round: int, kind: str, reason: str = "", users: tuple[str, ...] = (), node: int | None = None
    ) -> None:
        """Notes a fault of some users, or of a node or round as a whole."""
        assert kind in MEANING
        self.counts[kind] += max(1, len(users))
        entry = {"round": round + 1, "kind": kind, "node": node, "users": users, "reason": reason[:300]}
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")

    def rename(self, user: str, name: str) -> bool:
        """Puts another name in a user's place in the file; whether it was there."""
        if not self.path.is_file():
            return False
        entries = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        found = any(user in e["users"] for e in entries)
        for entry in entries:
            entry["users"] = [name if u == user else u for u in entry["users"]]
        if found:
            write_text(self.path, "".join(json.dumps(e) + "\n" for e in entries))
        return found

    def notes(self) -> tuple[str, ...]:
        """A sentence per kind, for the report."""
        return tuple(f"Network: {self.counts[k]} {text}." for k, text in MEANING.items() if self.counts[k])
