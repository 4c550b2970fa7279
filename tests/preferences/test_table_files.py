"""Every form of a table gives the same rows; what is no table, or not whole, is one line."""

from __future__ import annotations

import gzip
import json

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from fedvpa.errors import UserError
from fedvpa.preferences import tables
from fedvpa.preferences.tables import read_table

ROWS = [{"user": "ann", "text": 'a, "b"\nc'}, {"user": "bo", "text": "NA"}, {"user": "007", "text": "é"}]


def zstd(data):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as f:
        f.write(data)
    return out.getvalue().to_pybytes()


def csv(separator=","):
    return pd.DataFrame(ROWS).to_csv(index=False, sep=separator).encode()


def jsonl():
    return "\n".join(map(json.dumps, ROWS)).encode()


def parquet(tmp_path):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "made.parquet")
    return (tmp_path / "made.parquet").read_bytes()


def read(path):
    return [row for _, row in read_table(path).rows]


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize(
    "content",
    [
        jsonl(),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=1).encode(),
        csv(),
        csv("\t"),
        csv(";"),
        b"\xef\xbb\xbf" + csv(),
        csv().replace(b"\n", b"\r\n").replace(b'""\r\n', b'""\n') + b"\r\n\r\n",
    ],
)
def test_content_says_what_a_file_is(tmp_path, content, packed):
    path = tmp_path / "named.anything"
    path.write_bytes(packed(content))
    assert read(path) == ROWS


def test_parquet_and_dataset_folders(tmp_path):
    (tmp_path / "x").write_bytes(parquet(tmp_path))
    assert read(tmp_path / "x") == ROWS
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"a": made, "b": made}).save_to_disk(tmp_path / "three")
    assert read(tmp_path / "one") == read(tmp_path / "two") == ROWS
    with pytest.raises(UserError, match="has the splits a, b, but no train"):
        read(tmp_path / "three")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(UserError, match="one: not a whole dataset folder"):
        read(tmp_path / "one")


def test_a_hub_id_is_used_only_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "load_hub_rows", lambda name, *_: iter([{"from": name}]))
    assert read("owner/pairs") == [{"from": "owner/pairs"}]
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/pairs").write_bytes(jsonl())
    assert read("owner/pairs") == ROWS
    for name in ("owner/none.csv", "owner/none.parquet", "owner/none.jsonl.zst"):
        with pytest.raises(UserError, match="no such file"):
            read(name)


def test_rows_keep_their_numbers(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n\n3,4\n")
    assert read_table(tmp_path / "x.csv").rows == [(2, {"a": "1", "b": "2"}), (4, {"a": "3", "b": "4"})]
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_table(tmp_path / "x.jsonl").rows == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3,4,5\n", ":3: has 3 cells, but there are 2 columns"),
        (b"a,b\n1,2,3\n3,4,5\n", ":2: has more cells than columns"),
        (b'a,b\n1,2\n1,"2\n3,4\n', ":3: a quote is opened and never closed"),
        (b"a,b\n1,2\n3,\xff\n", ":3: not text in UTF-8"),
        (b'[{"a": 1},\n{"a": 2', ":2: not valid JSON"),
        (zstd(b"x" * 1000)[:-3], ": not a complete Zstandard file"),
        (gzip.compress(csv(), mtime=0)[:-9], ": not a complete gzip file"),
        (b"PAR1" + bytes(50), ": not a complete Parquet file"),
    ],
)
def test_what_is_no_whole_table(tmp_path, content, message):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError) as e:
        read_table(path)
    assert str(e.value).startswith(f"{path}{message}")
    assert "\n" not in str(e.value)


def test_a_parquet_file_that_is_cut_off(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet(tmp_path)[:-20])
    with pytest.raises(UserError, match="not a complete Parquet file; fetch or write it again"):
        read_table(path)
