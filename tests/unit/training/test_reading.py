"""Reading: every line is a row or is named, whatever the file is like."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from gptflow.errors import (
    BadEncoding,
    BadLabel,
    BadRows,
    EmptyData,
    LineTooLong,
    SpanOffToken,
    UnreadableFile,
)
from gptflow.training.data.reading import (
    dialogues,
    guess_kind,
    labelled,
    preferences,
    read,
    read_many,
    scored,
    tagged,
)
from gptflow.training.data.rows import Origin, Turn
from gptflow.training.data.source import Source


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path."""

    def write(name, content):
        path = tmp_path / name
        content = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def places(reading):
    return [(problem.origin.line, problem.reason) for problem in reading.problems]


def test_rows_know_the_file_and_the_line_that_they_come_from(file):
    path = file("a.csv", 'text,label\nfine,good\n"two\nlines",bad\n\nlast,good\n')
    rows = labelled(path).require()
    assert [(row.text, row.labels["label"]) for row in rows] == [
        ("fine", "good"),
        ("two\nlines", "bad"),
        ("last", "good"),
    ]
    assert [row.origin for row in rows] == [Origin(str(path), line) for line in (2, 3, 6)]


def test_compression_changes_nothing(file):
    content = 'text,label\na,x\n"b,c",y\n'
    plain, packed = labelled(file("a.csv", content)), labelled(file("b.csv.gz", content))
    assert [(r.text, r.labels, r.origin.line) for r in plain.rows] == [
        (r.text, r.labels, r.origin.line) for r in packed.rows
    ]


def test_bad_lines_are_reported_where_they_are_and_the_others_are_read(file):
    path = file(
        "a.jsonl",
        '{"text": "a", "label": "x"}\n{"text": \n[1]\n\n{"label": "x"}\n'
        '{"text": " ", "label": "x"}\n{"text": "b", "label": ["x"]}\n{"text": "c", "label": 1}\n',
    )
    reading = labelled(path)
    assert [row.text for row in reading.rows] == ["a", "c"]
    assert places(reading) == [
        (2, "format"),
        (3, "format"),
        (5, "field"),
        (6, "field"),
        (7, "label"),
    ]
    with pytest.raises(BadRows, match=rf"5 rows cannot be used: {path}:2: ") as caught:
        reading.require()
    assert len(caught.value.problems) == 5


def test_messages_about_rows_never_hold_their_text(file):
    secret = "my password is hunter2"
    path = file("a.jsonl", jsonl({"text": secret}, {"text": secret, "label": 1.5}) + secret)
    reading = labelled(path)
    assert len(reading.problems) == 3
    assert "hunter2" not in " ".join(map(str, reading.problems))


def test_a_file_of_two_encodings_is_told_by_the_lines_that_are_not_utf8(file):
    path = file("a.csv", "text,label\ncafé,x\n".encode() + "café,x\n".encode("latin-1"))
    reading = labelled(path)
    assert [row.text for row in reading.rows] == ["café"]
    with pytest.raises(BadEncoding, match=r":3: the line is not UTF-8: its byte 4 is 0xe9") as e:
        reading.require()
    assert "--encoding" in e.value.hint


def test_an_encoding_can_be_stated(file):
    path = file("a.csv", "text,label\ncafé,x\n".encode("latin-1"))
    [row] = labelled(path, Source(encoding="latin-1")).require()
    assert row.text == "café"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "no-such"])
def test_encodings_without_lines_and_unknown_ones_are_refused(file, encoding):
    with pytest.raises(UnreadableFile):
        labelled(file("a.csv", "text,label\n"), Source(encoding=encoding))


def test_a_byte_order_mark_is_no_part_of_the_first_name(file):
    [row] = labelled(file("a.csv", b"\xef\xbb\xbftext,label\na,x\n")).require()
    assert row.text == "a"


def test_utf16_is_named_and_so_is_the_way_out(file):
    with pytest.raises(UnreadableFile, match="UTF-16") as caught:
        labelled(file("a.csv", "text,label\na,x\n".encode("utf-16")))
    assert "iconv" in caught.value.hint


def test_a_line_of_ten_megabytes_is_refused_without_being_held(file):
    good = jsonl({"text": "a", "label": "x"})
    path = file("a.jsonl.gz", good + jsonl({"text": "z" * 10_000_000, "label": "x"}) + good)
    tracemalloc.start()
    reading = labelled(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    assert [row.origin.line for row in reading.rows] == [1, 3]
    assert "10000027 bytes" in str(reading.problems[0])
    with pytest.raises(LineTooLong, match=r":2: ") as caught:
        reading.require()
    assert "--max-line" in caught.value.hint
    assert len(labelled(path, Source(max_line=1 << 24)).require()) == 3


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n"])
def test_a_file_without_rows_is_an_error_of_its_own(file, content):
    with pytest.raises(EmptyData, match="no rows"):
        labelled(file("a.csv", content)).require()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"PAR1....", "Parquet"),
        ("a.jsonl", b"PK\x03\x04abc", "ZIP"),
        ("a.jsonl", b"\0\1\2", "no text"),
        ("a.parquet", b"text,label\n", "Parquet"),
        ("a.xlsx", b"", "does not say"),
        ("a.csv", b"a;b\n1;2\n", "one field"),
        ("a.csv", b"text,text\n", "name of its own"),
    ],
)
def test_files_that_are_something_else_are_named(file, name, content, words):
    with pytest.raises(UnreadableFile, match=words) as caught:
        labelled(file(name, content))
    assert caught.value.hint


def test_a_file_that_is_not_there_and_one_that_breaks_off(tmp_path):
    with pytest.raises(UnreadableFile, match="No such file"):
        labelled(tmp_path / "none.csv")
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(jsonl(*({"text": f"row {n}", "label": "x"} for n in range(500))).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableFile, match="breaks off after line"):
        labelled(path)


def test_a_quote_that_is_never_closed_is_reported_where_it_opens(file):
    reading = labelled(file("a.csv", 'text,label\na,x\n"b,x\nc,x\n'))
    assert len(reading.rows) == 1
    assert places(reading) == [(3, "format")]
    assert "never closed" in str(reading.problems[0])


def test_a_row_with_an_unreadable_line_inside_is_no_row(file):
    reading = labelled(file("a.csv", b'text,label\n"a\n\xff\nb",x\nc,x\n'))
    assert [row.text for row in reading.rows] == ["c"]
    assert places(reading) == [(2, "format"), (3, "encoding")]


def test_rows_of_too_few_or_too_many_fields_are_reported(file):
    reading = labelled(file("a.tsv", "text\tlabel\na\nb\tx\ty\nc\tx\n"))
    assert places(reading) == [(2, "format"), (3, "format")]
    assert [row.text for row in reading.rows] == ["c"]


def test_quotes_may_be_characters_like_others(file):
    path = file("a.tsv", 'text\tlabel\n"oh\tx\nno"\ty\n')
    rows = labelled(path, Source(quotes=False)).require()
    assert [row.text for row in rows] == ['"oh', 'no"']


@pytest.mark.parametrize("label", [" good", "good ", "  ", "go\nod", "go\u200bod"])
def test_labels_with_stray_blanks_are_refused(file, label):
    with pytest.raises(BadLabel) as caught:
        labelled(file("a.jsonl", jsonl({"text": "a", "label": label}))).require()
    assert "--strip-labels" in caught.value.hint


def test_labels_may_be_stripped_and_renamed(file):
    path = file("a.jsonl", jsonl({"text": "a", "label": " 1 "}, {"text": "b", "label": 0}))
    rows = labelled(path, Source(strip_labels=True, rename={"1": "bullish"})).require()
    assert [row.labels["label"] for row in rows] == ["bullish", "0"]


def test_several_heads_and_missing_labels(file):
    path = file("a.csv", "text,topic,mood\na,t1,m1\nb,,m2\nc,t2,\nd,,\n")
    reading = labelled(path, Source(labels={"topic": "topic", "sentiment": "mood"}))
    assert [dict(row.labels) for row in reading.rows] == [
        {"topic": "t1", "sentiment": "m1"},
        {"sentiment": "m2"},
        {"topic": "t2"},
    ]
    assert places(reading) == [(5, "label")]


def test_times_groups_and_languages_are_read(file):
    path = file(
        "a.jsonl",
        jsonl(
            {"text": "a", "label": "x", "time": "2026-01-02T00:00:00Z", "group": 7},
            {"text": "b", "label": "x", "time": 1767312000, "language": "zh"},
            {"text": "c", "label": "x", "time": "yesterday"},
        ),
    )
    reading = labelled(path)
    first, second = reading.rows
    assert first.time == second.time == 1767312000
    assert (first.group, second.language) == ("7", "zh")
    assert places(reading) == [(3, "field")]


def test_half_a_surrogate_pair_is_not_text(file):
    reading = labelled(file("a.jsonl", '{"text": "\\ud83d", "label": "x"}\n'))
    assert places(reading) == [(1, "encoding")]


def test_parquet_gives_the_rows_of_the_same_csv(file, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["a", None], "label": [1, 2]}), path)
    reading = labelled(path)
    assert [(row.text, row.labels["label"], row.origin.line) for row in reading.rows] == [
        ("a", "1", 1)
    ]
    assert places(reading) == [(2, "field")]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableFile, match="cannot be read as Parquet"):
        labelled(path)


def test_spans_take_whole_tokens(file):
    path = file(
        "a.jsonl",
        jsonl({"text": "Apple 苹果 rose 5%.", "spans": [[0, 5, "ORG"], [6, 8, "ORG"]]}),
    )
    [row] = tagged(path).require()
    assert row.words == ("Apple", "苹", "果", "rose", "5", "%", ".")
    assert row.tags == ("B-ORG", "B-ORG", "I-ORG", "O", "O", "O", "O")
    assert [(s.text, s.label, s.start, s.end) for s in row.spans] == [
        ("Apple", "ORG", 0, 5),
        ("苹果", "ORG", 6, 8),
    ]


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ([0, 3, "ORG"], "ends inside the token 0:5"),
        ([2, 5, "ORG"], "begins inside the token 0:5"),
        ([0, 6, "ORG"], "ends on no token's border"),
        ([3, 99, "ORG"], "not inside the text"),
        ([4, 4, "ORG"], "not inside the text"),
    ],
)
def test_spans_off_the_borders_of_tokens_are_refused_by_place(file, span, words):
    path = file("a.jsonl", jsonl({"text": "Apple rose.", "spans": [span]}))
    with pytest.raises(SpanOffToken, match=words) as caught:
        tagged(path).require()
    assert "borders of words" in caught.value.hint


def test_spans_that_overlap_are_refused(file):
    path = file("a.jsonl", jsonl({"text": "a b c", "spans": [[0, 3, "X"], [2, 5, "Y"]]}))
    with pytest.raises(SpanOffToken, match="overlaps"):
        tagged(path).require()


def test_tokens_with_tags_may_be_given(file):
    path = file(
        "a.jsonl",
        jsonl(
            {"tokens": ["18th", "St"], "tags": ["B-LOC", "I-LOC"], "text": "18th  St"},
            {"tokens": ["a"], "tags": []},
            {"tokens": ["a"], "tags": ["X-Y"]},
            {"tokens": ["a"], "tags": ["B-two words"]},
            {"text": "a", "tags": ["O"]},
        ),
    )
    reading = tagged(path)
    [row] = reading.rows
    assert [(s.start, s.end) for s in row.spans] == [(0, 8)]
    assert places(reading) == [(2, "tags"), (3, "tags"), (4, "tags"), (5, "field")]


def test_dialogues_in_the_usual_shapes_are_one(file):
    path = file(
        "a.jsonl",
        jsonl(
            {"turns": [{"role": "user", "text": "hi"}, {"role": "agent", "text": "hello"}]},
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "hello"},
                ]
            },
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "hello"},
                ]
            },
            {"turns": [{"s": "u", "t": "hi"}, {"s": "a", "t": "hello"}]},
        ),
    )
    rows = dialogues(path).require()
    assert {row.turns for row in rows} == {(Turn("user", "hi"), Turn("assistant", "hello"))}


def test_dialogues_that_teach_nothing_or_whose_speakers_are_unknown_are_refused(file):
    path = file(
        "a.jsonl",
        jsonl(
            {"turns": [{"role": "user", "text": "hi"}]},
            {"turns": [{"role": "alien", "text": "hi"}]},
            {"turns": [{"role": "user", "text": " "}]},
            {"turns": "hi"},
            {
                "turns": [
                    {"role": "user", "text": "a"},
                    {"role": "system", "text": "b"},
                    {"role": "assistant", "text": "c"},
                ]
            },
        ),
    )
    assert [line for line, _ in places(dialogues(path))] == [1, 2, 3, 4, 5]


def test_a_table_of_turns_is_put_together_by_conversation(file):
    path = file(
        "a.csv",
        "conversation,role,text\n1,customer,hi\n2,customer,yo\n1,agent,hello\n2,agent,\n3,agent,x\n",
    )
    reading = dialogues(path)
    assert [(row.id, row.group, [t.role for t in row.turns]) for row in reading.rows] == [
        ("1", "1", ["user", "assistant"]),
        ("3", "3", ["assistant"]),
    ]
    assert places(reading) == [(5, "field")]


def test_scored_pairs_and_preferences(file):
    pairs = file(
        "a.jsonl",
        jsonl(
            {"query": "q", "candidate": "c", "score": 1},
            {"question": "q", "answer": "c", "label": "0.5"},
            {"query": "q", "candidate": "c", "score": "much"},
        )
        + '{"query": "q", "candidate": "c", "score": NaN}\n',
    )
    reading = scored(pairs)
    assert [row.score for row in reading.rows] == [1.0, 0.5]
    assert [line for line, _ in places(reading)] == [3, 4]
    chosen = file(
        "b.jsonl",
        jsonl(
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", "chosen": "a", "rejected": "a"},
        ),
    )
    assert len(preferences(chosen).rows) == 1
    assert places(preferences(chosen)) == [(2, "field")]


def test_plain_text_is_cut_at_blank_lines(file):
    rows = read(file("a.txt", "one\ntwo\n\n\nthree\n"), "text").require()
    assert [(row.content, row.origin.line) for row in rows] == [("one\ntwo", 1), ("three", 5)]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.conll", "a O\n", "tags"),
        ("a.txt", "hello", "text"),
        ("a.csv", "text,label\na,x\n", "labels"),
        ("a.csv", "conversation,role,text\n1,user,x\n", "dialogues"),
        ("a.jsonl", jsonl({"messages": []}), "dialogues"),
        ("a.jsonl", jsonl({"text": "", "entities": []}), "tags"),
        ("a.jsonl", jsonl({"prompt": "", "chosen": "", "rejected": ""}), "preferences"),
        ("a.jsonl", jsonl({"question": "", "answer": "", "label": 1}), "scores"),
        ("a.jsonl", jsonl({"text": "hello"}), "text"),
    ],
)
def test_what_a_file_holds_is_told_from_its_fields(file, name, content, kind):
    assert guess_kind(file(name, content)) == kind


def test_fields_that_say_nothing_are_named(file):
    with pytest.raises(UnreadableFile, match="'foo'"):
        guess_kind(file("a.jsonl", jsonl({"foo": 1})))
    with pytest.raises(EmptyData):
        guess_kind(file("a.jsonl", ""))


def test_several_files_are_read_in_turn(file):
    one, two = file("a.csv", "text,label\na,x\n"), file("b.csv", "text,label\nb\n")
    reading = read_many([one, two], "labels")
    assert [row.content for row in reading.rows] == ["a"]
    assert [problem.origin for problem in reading.problems] == [Origin(str(two), 2)]
