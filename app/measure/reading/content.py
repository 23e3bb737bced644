"""From a file's bytes to its text: what is no text is refused by name, with what to do."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

from app.errors import InvalidInput

MAX_FILE_BYTES: Final = 512 * 2**20
MAX_DIRECTORY_BYTES: Final = 2**20
"""Of a zip archive's beginning, within which the names of its first files stand."""

AS_CSV: Final = "save it as CSV (UTF-8) and give that file"
UNPACK: Final = "unpack it and give the file inside"
CONVERT: Final = "write it as CSV or as JSON lines"
BEGINNING_TO_FAULT: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"this is an old Excel or Word file; {AS_CSV}"),
    (b"PAR1", f"this is a Parquet file; {CONVERT}"),
    (b"ARROW1", f"this is an Arrow file; {CONVERT}"),
    (b"SQLite format 3\0", f"this is an SQLite database; {CONVERT}"),
    (b"\x89HDF", f"this is an HDF5 file; {CONVERT}"),
    (b"\x93NUMPY", f"this is a NumPy file; {CONVERT}"),
    (b"Obj\x01", f"this is an Avro file; {CONVERT}"),
    *(
        (bytes([0x80, protocol, 0x95]), f"this is a Python pickle, which is never opened; {CONVERT}")
        for protocol in (4, 5)
    ),
    (b"%PDF-", "this is a PDF; copy its table into a spreadsheet and save that as CSV (UTF-8)"),
    (b"{\\rtf", "this is an RTF document; save it as plain text (UTF-8)"),
    (b"\x1f\x8b", f"this is compressed with gzip; {UNPACK}"),
    (b"BZh", f"this is compressed with bzip2; {UNPACK}"),
    (b"\xfd7zXZ\0", f"this is compressed with xz; {UNPACK}"),
    (b"(\xb5/\xfd", f"this is compressed with zstd; {UNPACK}"),
    (b"7z\xbc\xaf'\x1c", f"this is a 7z archive; {UNPACK}"),
    (b"Rar!\x1a\x07", f"this is a RAR archive; {UNPACK}"),
    (b"\x89PNG", "this is an image"),
    (b"\xff\xd8\xff", "this is an image"),
)
ZIPPED_TO_FAULT: Final = (
    (b"xl/", f"this is an Excel file; {AS_CSV}"),
    (b"word/", "this is a Word file; save it as plain text (UTF-8)"),
    (b"opendocument.spreadsheet", f"this is an OpenDocument spreadsheet; {AS_CSV}"),
    (b"index.iwa", f"this is a Numbers file; {AS_CSV}"),
    (b"Index/", f"this is a Numbers file; {AS_CSV}"),
)
WEB_PAGE: Final = ("<!doctype html", "<html")
MARKED: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(title: str, source: Path | bytes) -> str:
    """A text in UTF-8, or in what its byte order mark says: Excel's "Unicode text" is UTF-16.

    Args: title: what messages call the file.

    Raises InvalidInput: it cannot be read, is too large or empty, or holds something else than text.
    """
    data = source if isinstance(source, bytes) else _read_file(title, source)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"{title}: the file is larger than {MAX_FILE_BYTES} bytes", param="file")
    if not data.strip():
        raise InvalidInput(f"{title}: the file is empty", param="file")
    _refuse_other_kinds(title, data)
    text = _decode(title, data)
    if not text.strip():
        raise InvalidInput(f"{title}: the file is empty", param="file")
    if text[:1000].lstrip().lower().startswith(WEB_PAGE):
        raise InvalidInput(f"{title}: this is a web page; download the file itself", param="file")
    return text


def _read_file(title: str, path: Path) -> bytes:
    """One byte more than a file may have is enough to refuse it."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{title}: cannot be read: {error.strerror}", param="file") from error


def _refuse_other_kinds(title: str, data: bytes) -> None:
    fault = next((fault for beginning, fault in BEGINNING_TO_FAULT if data.startswith(beginning)), None)
    if data.startswith(b"PK\x03\x04"):
        names = data[:MAX_DIRECTORY_BYTES]
        fault = next((fault for name, fault in ZIPPED_TO_FAULT if name in names), f"this is a zip archive; {UNPACK}")
    if fault is not None:
        raise InvalidInput(f"{title}: {fault}", param="file")


def _decode(title: str, data: bytes) -> str:
    """UTF-16 of plain ASCII without a mark would pass for UTF-8 if it had no NULs."""
    encoding = next((encoding for mark, encoding in MARKED if data.startswith(mark)), "utf-8")
    fault = data.find(b"\0") if encoding.startswith("utf-8") else -1
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        fault = error.start if fault < 0 else fault
    if fault >= 0:
        line = data.count(b"\n", 0, fault) + 1
        raise InvalidInput(
            f"{title}, line {line}: is not UTF-8; save the file as UTF-8 (in Excel: CSV UTF-8)", param="file"
        )
    return text
