"""The store gives back what was put in, notices damage, and survives it."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvpa.backbone.store import Entry, Store
from fedvpa.errors import UserError


def entries(n: int, dim: int = 8) -> dict[bytes, Entry]:
    values = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    return {i.to_bytes(32, "big"): Entry(v, i % 3) for i, v in enumerate(values)}


def equal(found: dict[bytes, Entry], want: dict[bytes, Entry]) -> bool:
    same = (np.array_equal(found[k].value, want[k].value) and found[k].cut == want[k].cut for k in found)
    return found.keys() == want.keys() and all(same)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.binary(min_size=32, max_size=32), st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3)
    )
)
def test_round_trip(tmp_path_factory, rows) -> None:
    want = {k: Entry(np.array(v, np.float32), 0) for k, v in rows.items()}
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder, {"x": 1}, 3)
    store.put(want)
    store.close()
    found, damaged = Store(folder, {"x": 1}, 3).get([*want, b"absent"])
    assert equal(found, want)
    assert damaged == 0


def test_another_identity_is_another_file(tmp_path) -> None:
    one, two = Store(tmp_path, {"x": 1}, 8), Store(tmp_path, {"x": 2}, 8)
    one.put(entries(2))
    assert two.get(list(entries(2))) == ({}, 0)
    assert one.path != two.path


def test_the_later_of_two_writers_wins_and_both_see_everything(tmp_path) -> None:
    one, two = Store(tmp_path, {}, 8), Store(tmp_path, {}, 8)
    all_of_them = entries(10)
    one.put(dict(list(all_of_them.items())[:6]))
    two.put(dict(list(all_of_them.items())[4:]))
    assert equal(one.get(list(all_of_them))[0], all_of_them)


def write_in_turns(folder: Path, start: int) -> None:
    store = Store(folder, {}, 8)
    rows = list(entries(200).items())
    for i in range(start, 200, 2):
        store.put(dict(rows[i : i + 2]))
    store.close()


def test_two_processes_write_at_once(tmp_path) -> None:
    forked = multiprocessing.get_context("fork")  # they need no torch, so the fork is safe and spares the imports
    writers = [forked.Process(target=write_in_turns, args=(tmp_path, start)) for start in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    found, damaged = Store(tmp_path, {}, 8).get(list(entries(200)))
    assert equal(found, entries(200))
    assert damaged == 0


@pytest.mark.parametrize(
    "damage",
    [
        "value = zeroblob(32)",
        "value = x'00'",
        "value = 'text'",
        "cut = cut + 1",
        "cut = 'many'",
        "checksum = x'0000'",
    ],
)
def test_a_damaged_row_counts_as_missing(tmp_path, damage) -> None:
    store = Store(tmp_path, {}, 8)
    store.put(entries(5))
    with sqlite3.connect(store.path) as db:
        db.execute(f"UPDATE vectors SET {damage} WHERE key = ?", ((2).to_bytes(32, "big"),))
    found, damaged = store.get(list(entries(5)))
    assert damaged == 1
    assert len(found) == 4


def test_a_row_under_anothers_key_counts_as_missing(tmp_path) -> None:
    store = Store(tmp_path, {}, 8)
    store.put(entries(1))
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE vectors SET key = ?", ((9).to_bytes(32, "big"),))
    assert store.get([(9).to_bytes(32, "big")]) == ({}, 1)


def test_rubbish_in_place_of_the_file_is_set_aside(tmp_path, capsys) -> None:
    store = Store(tmp_path, {}, 8)
    store.close()
    store.path.write_bytes(b"rubbish" * 1000)
    again = Store(tmp_path, {}, 8)
    assert "damaged" in capsys.readouterr().err
    again.put(entries(3))
    assert len(again.get(list(entries(3)))[0]) == 3
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"rubbish")


@pytest.mark.parametrize("action", ["get", "put"])
def test_damage_inside_the_file_is_set_aside(tmp_path, capsys, action) -> None:
    store = Store(tmp_path, {}, 512)
    store.put(entries(200, 512))
    store.close()
    size = store.path.stat().st_size
    with store.path.open("r+b") as f:  # all but the header and the schema
        f.seek(3 * 4096)
        f.write(os.urandom(size - 3 * 4096))
    again = Store(tmp_path, {}, 512)
    if action == "put":
        again.put(entries(200, 512))
    else:
        found, _ = again.get(list(entries(200, 512)))
        assert not found
    assert "set aside" in capsys.readouterr().err
    again.put(entries(3, 512))
    assert len(again.get(list(entries(3, 512)))[0]) == 3


def test_a_full_disk(tmp_path) -> None:
    store = Store(tmp_path, {}, 8)
    store._connection.execute("PRAGMA max_page_count = 10")
    with pytest.raises(UserError, match=r"full.*free some space") as e:
        store.put(entries(2000))
    assert "\n" not in str(e.value)
    assert store.get(list(entries(2000))) == ({}, 0)  # whole or not at all


def test_a_read_only_file(tmp_path) -> None:
    store = Store(tmp_path, {}, 8)
    store._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(UserError, match=r"readonly.*output\.cache"):
        store.put(entries(1))


def test_a_folder_that_cannot_be(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "features", {}, 8)
    blocked = Store(tmp_path, {}, 8)
    blocked.close()
    blocked.path.unlink()
    blocked.path.mkdir()
    with pytest.raises(UserError, match="unable to open"):
        Store(tmp_path, {}, 8)


def test_a_file_that_another_process_holds(tmp_path) -> None:
    store = Store(tmp_path, {}, 8)
    store._connection.execute("PRAGMA busy_timeout = 10")
    holder = sqlite3.connect(store.path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another process holds the cache"):
        store.put(entries(1))
    holder.rollback()
    store.put(entries(1))


def test_ten_thousand_rows_are_read_at_once(tmp_path) -> None:
    """More than one SQL statement takes."""
    store = Store(tmp_path, {}, 576)
    many = entries(10_000, 576)
    store.put(many)
    found, _ = store.get(list(many))
    assert found.keys() == many.keys()


def test_the_file_tells_its_identity(tmp_path) -> None:
    store = Store(tmp_path, {"layer": 3}, 8)
    store.close()
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT json FROM identity").fetchall() == [('{"layer": 3}',)]
