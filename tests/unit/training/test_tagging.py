"""Tags: schemes are told apart, checked and converted; CoNLL in its many forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import BadRows, UnreadableFile
from gptflow.training.data.conll import scheme_of
from gptflow.training.data.reading import tagged
from gptflow.training.data.source import Source
from gptflow.training.data.tagging import detect, from_iob2, spans_of, tags_of, to_iob2
from gptflow.training.data.tokens import align, tag_tokens, tokens_of


@st.composite
def sequences(draw):
    """Valid tags in IOB2."""
    tags = []
    for _ in range(draw(st.integers(0, 5))):
        tags += ["O"] * draw(st.integers(0, 2))
        label = draw(st.sampled_from(["X", "Y"]))
        tags += [f"B-{label}", *[f"I-{label}"] * draw(st.integers(0, 3))]
    return tuple(tags)


@given(sequences(), st.sampled_from(["iob1", "iob2", "bioes"]))
def test_tags_survive_every_scheme(tags, scheme):
    assert to_iob2(from_iob2(tags, scheme), scheme) == tags


@given(sequences())
def test_spans_and_tags_are_each_others_inverse(tags):
    assert tags_of(spans_of(tags), len(tags)) == tags


def test_the_schemes_by_hand():
    iob2 = ("B-X", "I-X", "B-X", "O", "B-Y")
    assert from_iob2(iob2, "iob1") == ("I-X", "I-X", "B-X", "O", "I-Y")
    assert from_iob2(iob2, "bioes") == ("B-X", "E-X", "S-X", "O", "S-Y")
    assert to_iob2(["B-X", "L-X", "U-X"], "bioes") == ("B-X", "I-X", "B-X")
    assert to_iob2(["I-X", "I-Y", "I-Y"], "iob1") == ("B-X", "B-Y", "I-Y")


@pytest.mark.parametrize(
    ("sequence", "scheme"),
    [
        (["I-X", "O"], "iob1"),
        (["I-X", "B-X"], "iob1"),
        (["B-X", "I-X"], "iob2"),
        (["B-X", "O", "I-X"], "iob2"),
        (["S-X"], "bioes"),
        (["B-X", "E-X"], "bioes"),
        (["O"], "iob2"),
    ],
)
def test_a_scheme_is_told_from_its_tags(sequence, scheme):
    assert detect([["O"], sequence]) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["I-X"], "iob2"),
        (["B-X", "I-Y"], "iob2"),
        (["I-X"], "bioes"),
        (["B-X", "O"], "bioes"),
        (["B-X"], "bioes"),
        (["B-X", "I-Y", "E-Y"], "bioes"),
    ],
)
def test_tags_that_the_scheme_forbids_are_refused(tags, scheme):
    with pytest.raises(ValueError, match="token"):
        to_iob2(tags, scheme)


def test_a_stray_inside_tag_is_no_span():
    assert spans_of(("O", "I-X", "B-Y", "I-X")) == ((2, 3, "Y"),)


def write(tmp_path, content, name="a.conll"):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def test_conll_2003_has_four_columns_and_documents(tmp_path):
    path = write(
        tmp_path,
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nsays VBZ I-VP O\n\n# NN I-NP O\n1 CD I-NP O\n",
    )
    assert scheme_of(path, Source()) == "iob1"
    first, second = tagged(path).require()
    assert (first.text, first.tags, first.origin.line) == ("EU says", ("B-ORG", "O"), 3)
    assert first.group == "document 1"
    assert second.words == ("#", "1")


def test_conllu_counts_tokens_and_says_what_the_text_was(tmp_path):
    path = write(
        tmp_path,
        "# sent_id = s1\n# text = 我爱北京.\n1\t我\tO\t-\t-\n2\t爱\tO\t-\t-\n"
        "3\t北京\tB-LOC\t-\t-\n4\t.\tO\t-\t-\n",
        "a.iob2",
    )
    [row] = tagged(path).require()
    assert (row.text, row.id) == ("我爱北京.", "s1")
    assert [(s.text, s.start, s.end) for s in row.spans] == [("北京", 2, 4)]


def test_a_text_that_the_tokens_are_not_from_is_not_used(tmp_path):
    path = write(tmp_path, "# text = something else\na\tO\nb\tB-X\n")
    [row] = tagged(path).require()
    assert row.text == "a b"


def test_bad_lines_spoil_their_sentence_and_are_named(tmp_path):
    path = write(tmp_path, "a O\nb O\n\nc\nd O\n\ne O\nf Z-X\n\ng O\nh I-X\ni B-X\n\nj B-X\n")
    reading = tagged(path, Source(scheme="iob2"))
    assert [row.words for row in reading.rows] == [("a", "b"), ("j",)]
    assert [problem.origin.line for problem in reading.problems] == [4, 8, 10]
    with pytest.raises(BadRows, match="3 rows"):
        reading.require()


def test_tag_labels_with_blanks_are_refused(tmp_path):
    reading = tagged(write(tmp_path, "a\tB-creative work\nb\tO\nc\tO\n"))
    [problem] = reading.problems
    assert problem.reason == "label"
    assert problem.origin.line == 1


def test_a_file_without_tags_says_how_to_name_the_column(tmp_path):
    with pytest.raises(UnreadableFile, match="holds tags") as caught:
        tagged(write(tmp_path, "a x\nb y\n"))
    assert "--tag-column" in caught.value.hint
    path = write(tmp_path, "O a\nB-X b\n")
    assert tagged(path, Source(token_column=2, tag_column=1)).require()[0].words == ("a", "b")
    with pytest.raises(UnreadableFile, match="no column 9"):
        tagged(path, Source(tag_column=9))


def test_a_line_that_cannot_be_read_spoils_its_sentence_only(tmp_path):
    path = tmp_path / "a.conll"
    path.write_bytes(b"a O\n\xff O\n\nb B-X\n")
    reading = tagged(path)
    assert [row.words for row in reading.rows] == [("b",)]
    assert [(p.origin.line, p.reason) for p in reading.problems] == [(2, "encoding")]


@given(st.text(alphabet="ab Z9.,'$中国é_", max_size=30))
def test_tokens_cover_everything_but_blanks(text):
    tokens = tokens_of(text)
    assert "".join(text[t.start : t.end] for t in tokens) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(tokens))


@given(st.lists(st.text(alphabet="ab中国.", min_size=1, max_size=4), min_size=1, max_size=6))
def test_words_put_together_are_found_where_they_stand(words):
    text, tokens = align(words)
    assert [text[t.start : t.end] for t in tokens] == words
    spans = [(token.start, token.end, "X") for token in tokens]
    assert tag_tokens(tokens, spans) == ("B-X",) * len(words)
