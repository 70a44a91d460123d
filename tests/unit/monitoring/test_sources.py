"""Feeds: what is read, and what is said of what cannot be."""

import tracemalloc
from pathlib import Path

import pytest

from gptflow.errors import InvalidInput
from gptflow.monitoring.sources import (
    LONGEST_LINE,
    BadRow,
    Post,
    parse_time,
    posts,
    read_csv,
    read_jsonl,
    rows,
)


def feed(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_bad_rows_are_named_by_their_line(tmp_path: Path) -> None:
    path = feed(
        tmp_path,
        "feed.jsonl",
        b'\xef\xbb\xbf{"id": 1, "text": "a", "ts": 5}\n'
        b"\n"
        b"{broken\n"
        b"[1]\n"
        b'{"text": "", "ts": 5}\n'
        b'{"text": "no time"}\n'
        b'{"text": "caf\xe9", "ts": 5}\n'
        b'{"text": "b", "ts": "2026-03-02T08:00:00+01:00", "likes": 3}\n',
    )
    found = list(posts(read_jsonl(str(path))))
    assert [row.line for row in found if isinstance(row, BadRow)] == [3, 4, 5, 6, 7]
    good = [row for row in found if isinstance(row, Post)]
    assert [(post.id, post.ts) for post in good] == [("1", 5.0), (good[1].id, 1772434800.0)]


def test_csv_is_read_with_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = feed(
        tmp_path,
        "feed.csv",
        '\ufeffid,text,ts,source\r\na,"one,\ntwo",10,wire\r\nb,three,20\r\nc,four,30,wire,more\r\n',
    )
    found = list(posts(read_csv(str(path))))
    assert found[0] == Post(id="a", text="one,\ntwo", ts=10.0, source="wire")
    assert found[1] == Post(id="b", text="three", ts=20.0)
    assert found[2] == BadRow(5, "more fields than the header has")


def test_csv_without_the_needed_columns_is_refused(tmp_path: Path) -> None:
    path = feed(tmp_path, "feed.csv", "id,body\n1,x\n")
    with pytest.raises(InvalidInput, match="no column 'text'"):
        list(read_csv(str(path)))


def test_rows_without_an_id_are_known_by_time_and_text() -> None:
    first, again, other = posts(
        [{"text": "x", "ts": 1}, {"text": "x", "ts": 1.0}, {"text": "x", "ts": 2}]
    )
    assert isinstance(first, Post)
    assert isinstance(other, Post)
    assert first == again
    assert first.id != other.id


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (1772434800, 1772434800.0),
        ("1772434800", 1772434800.0),
        (1772434800000, 1772434800.0),
        ("2026-03-02T07:00:00Z", 1772434800.0),
        ("2026-03-02 07:00:00", 1772434800.0),
        ("2026-03-02", 1772409600.0),
    ],
)
def test_times_are_unix_or_iso(given: object, seconds: float) -> None:
    assert parse_time(given) == seconds


@pytest.mark.parametrize("given", ["yesterday", None, True, float("nan"), -1, "9e99", 10**400, [1]])
def test_other_times_are_refused(given: object) -> None:
    with pytest.raises(ValueError, match="ts is"):
        parse_time(given)


def test_files_outside_the_permitted_folders_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "feeds"
    root.mkdir()
    feed(tmp_path, "secret.jsonl", "{}")
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for file in ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl"):
        for location in (file, f"jsonl:{file}", f"csv:{file}"):
            with pytest.raises(InvalidInput, match="not in a folder"):
                rows(location, readers={}, roots=[root])


def test_a_scheme_names_the_kind_of_a_file_without_a_suffix(tmp_path: Path) -> None:
    feed(tmp_path, "feed.log", '{"text": "a", "ts": 5}\n')
    (found,) = posts(rows("jsonl:feed.log", readers={}, roots=[tmp_path]))
    assert isinstance(found, Post)


def test_a_line_that_is_too_long_is_a_bad_row_and_not_held(tmp_path: Path) -> None:
    good = '{"text": "a", "ts": 5}\n'
    path = feed(tmp_path, "feed.jsonl", good + "x" * 40 * LONGEST_LINE + "\n" + good)
    tracemalloc.start()
    found = list(posts(read_jsonl(str(path))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[1] == BadRow(2, "longer than 1048576 bytes")
    assert found[0] == found[2]
    assert peak < 8 * LONGEST_LINE


def test_a_line_of_csv_that_is_too_long_is_a_bad_row(tmp_path: Path) -> None:
    path = feed(tmp_path, "feed.csv", "text,ts\na,5\n" + "x" * 2 * LONGEST_LINE + "\nb,6\n")
    found = list(posts(read_csv(str(path))))
    assert found[1] == BadRow(3, "not CSV: longer than 1048576 bytes")
    assert [row.text for row in found if isinstance(row, Post)] == ["a", "b"]


def test_plugins_add_readers_by_scheme(tmp_path: Path) -> None:
    def read(location: str) -> list[dict[str, object]]:
        return [{"text": location, "ts": 1}]

    (found,) = posts(rows("wire:market", readers={"wire": read}, roots=[]))
    assert isinstance(found, Post)
    assert found.text == "market"
    with pytest.raises(InvalidInput, match="No plugin reads feeds of kind 'rss'"):
        rows("rss:x", readers={}, roots=[])
