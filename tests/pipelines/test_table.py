"""CSV files as people write them: forgiven where the meaning is plain, refused with line numbers where it is not."""

from __future__ import annotations

import pytest

from fastssl.pipelines.errors import DataError
from fastssl.pipelines.table import guarded, read_table, unguarded, write_table

EXPECTED = [("a.png", "cat"), ("b c.png", "dog, brown"), ("é.png", "")]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
def test_delimiters_line_ends_marks_blank_lines_quotes_and_spaces(tmp_path, mark, ends, start):
    lines = [f"Path{mark} LABEL ", f"a.png{mark} cat ", "", f'"b c.png"{mark}"dog, brown"', mark, f"é.png{mark}"]
    path = tmp_path / "labels.csv"
    path.write_bytes((start + ends.join(lines) + ends).encode())
    rows, problems = read_table(path, ("path", "label"))
    assert not problems and [(r.fields["path"], r.fields["label"]) for r in rows] == EXPECTED
    if ends != "\r":
        offset = 2 if start == "\n\n" else 0
        assert [r.line for r in rows] == [2 + offset, 4 + offset, 6 + offset]


def refused(tmp_path, content: bytes):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    return read_table(path, ("path", "label"))[1]


def test_header_faults(tmp_path):
    assert refused(tmp_path, b"") == [("labels.csv:1", "the file is empty; its first line must name the columns path, label")]
    assert refused(tmp_path, b"path,lable\na,b\n") == [
        ("labels.csv:1", "unknown column 'lable'; did you mean label?"),
        ("labels.csv:1", "column 'label' is missing"),
    ]
    assert refused(tmp_path, b"path,label,path\na,b,c\n") == [("labels.csv:1", "column 'path' comes twice")]


def test_row_faults_come_with_their_lines(tmp_path):
    problems = refused(tmp_path, b"path,label\na,b\nc\nd,e,f\n\ng\0,h\n")
    assert [place for place, _ in problems] == ["labels.csv:3", "labels.csv:4", "labels.csv:6"]
    assert problems[0][1].startswith("number of fields is 1, the header has 2")
    assert problems[2][1] == "holds a NUL character"
    assert refused(tmp_path, b'path,label\na,b\n"c,d\ne,f\n')[0] == (
        "labels.csv:3",
        "not a CSV record (unexpected end of data); check its quotes",
    )


def test_text_that_is_not_utf8_is_refused_by_line(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("path,label\na,b\nü,c\nd,e\nf,ö\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text; save it as UTF-8") as caught:
        read_table(path, ("path", "label"))
    assert caught.value.problems == [("labels.csv:3", "byte 1 is not UTF-8"), ("labels.csv:5", "byte 3 is not UTF-8")]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot read .*nowhere.csv: No such file"):
        read_table(tmp_path / "nowhere.csv", ("path",))


@pytest.mark.parametrize("field", ["=cmd()", "+1", "-1", "@x", "'=a", "''b", "plain", "", "'tis", "a=b", "a,b", 'a"b', "two\nlines"])
def test_written_fields_are_safe_and_come_back(tmp_path, field):
    assert not guarded(field).startswith(("=", "+", "-", "@"))
    assert unguarded(guarded(field)) == field
    write_table(tmp_path / "out.csv", ("path", "label"), [(field, "x")])
    rows, problems = read_table(tmp_path / "out.csv", ("path", "label"))
    assert not problems and unguarded(rows[0].fields["path"]) == field
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
