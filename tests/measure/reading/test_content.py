"""What is no text is refused by its name, with what to do; what is text is read whatever its encoding's mark."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.example_file import read_dataset, read_inputs

CSV = "text,label\nschön,x\n"


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(name, "<xml/>")
    return content.getvalue()


KINDS = {
    "xlsx": (zipped("xl/workbook.xml"), "this is an Excel file; save it as CSV"),
    "docx": (zipped("word/document.xml"), "this is a Word file"),
    "zip": (zipped("reviews.csv"), "this is a zip archive; unpack it"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "this is an old Excel or Word file; save it as CSV"),
    "parquet": (b"PAR1" + bytes(40), "this is a Parquet file; write it as CSV or as JSON lines"),
    "gz": (gzip.compress(CSV.encode()), "this is compressed with gzip; unpack it"),
    "pdf": (b"%PDF-1.7\n...", "this is a PDF"),
    "sqlite": (b"SQLite format 3\0" + bytes(40), "this is an SQLite database"),
    "pickle": (b"\x80\x04\x95\x10" + bytes(40), "this is a Python pickle, which is never opened"),
    "rtf": (b"{\\rtf1 text,label}", "this is an RTF document"),
    "html": (b"\n<!DOCTYPE html><html>text,label</html>", "this is a web page"),
    "Latin-1": (CSV.encode("latin-1"), "line 2: is not UTF-8; save the file as UTF-8"),
    "UTF-16 without a mark": (CSV.encode("utf-16-le"), "line 1: is not UTF-8; save the file as UTF-8"),
    "nothing but marks": ("\ufeff".encode("utf-16"), "the file is empty"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["reviews.csv", "reviews.jsonl", "reviews.xlsx"])
def test_what_is_no_text_is_refused_by_name(kind: str, name: str) -> None:
    content, words = KINDS[kind]
    for read in (read_dataset, read_inputs):
        with pytest.raises(InvalidInput) as caught:
            read(content, name=name)
        assert caught.value.message.startswith(name)
        assert words in caught.value.message
        assert caught.value.param == "file"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_is_read_in_what_its_mark_says(encoding: str) -> None:
    assert read_dataset(CSV.encode(encoding), name="d.csv").examples == (Example("schön", "x"),)


@pytest.mark.parametrize("name", ["inputs.txt", "inputs.jsonl", "inputs.csv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_where_files_end_them_and_nowhere_else(name: str, end: str) -> None:
    texts = ["a\u2028b", "c\fd", "e\x85f", "g\x1ch\x0bi\x1dj\x1ek\u2029l"]
    rows = {
        "inputs.txt": texts,
        "inputs.csv": ["input", *texts],
        "inputs.jsonl": [f'{{"input": "{text}"}}' for text in texts[:1]],
    }[name]
    found = read_inputs(end.join([*rows, ""]).encode(), name=name)
    assert found == tuple(texts[: len(found)])
    assert len(found) == len(rows) - (name == "inputs.csv")
