"""Untrusted input, read within bounds and made visible: regular files, texts, JSON, TOML, lines, arrays in a zip.

What is too large, too deeply nested or malformed is refused in one sentence. What the values mean does not matter.
"""

from __future__ import annotations

import io
import json
import re
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard
from numpy.lib import format as npy
from pydantic_core import ErrorDetails

from ..errors import BadInput, did_you_mean
from ..schema import Array

MAX_BYTES = 16_000_000
"""Of a JSON or TOML file, and of one line of JSON lines."""
MAX_DEPTH = 64
"""Nesting of lists and objects; honest files have about five levels."""
MAX_DIGITS = 40
"""Of a whole number; longer ones overflow every type."""
MAX_ARRAY_BYTES = 1 << 30
"""Of all arrays in a zip together."""
SMALL_BYTES = 1 << 26
"""Memory that any file may take, whatever its size."""
MAX_GROWTH = 2_000
"""Bytes of memory for each byte of a file beyond that; deflate reaches 1,032."""

_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
_MANY_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_DOTTED_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}""")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAKEN_LITERALLY = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, line feed and tab excepted
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls, zero-width space
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line separators of JavaScript; invisible marks
    "\U000e0000-\U000e007f"  # tags, which are letters that nobody sees
    "\ud800-\udfff"  # halves of characters
    "]"
)
_BAD_ZIP = (ValueError, OSError, EOFError, KeyError, RecursionError, MemoryError, SyntaxError, zipfile.BadZipFile)
_BAD_ZIP_FEATURES = (NotImplementedError, RuntimeError, zipfile.LargeZipFile)  # password, unknown compression


class UnreadableError(ValueError):
    """Why a text cannot be read, with line and column where known."""


def visible(text: str) -> str:
    """Replace every character that would reorder, hide or break others by its number: ⟨U+202E⟩."""
    return _TAKEN_LITERALLY.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def require_regular(path: Path) -> None:
    """Refuse anything but a regular file, before a read can hang.

    Raises:
        BadInput: naming what it is: missing, a folder, a pipe, a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise _unopened(path, error) from error
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "a device")
        raise BadInput(f"{path} is {kind}; a file is needed.")


def require_inside(folder: Path) -> None:
    """Refuse an untrusted folder with links out of it, which would copy other files.

    Raises:
        BadInput: naming the first link that leads elsewhere.
    """
    own = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(own):
            raise BadInput(f"{path} is a link out of {folder}.", "Put the file itself there.")


def require_growth(where: str, claimed: int, held: int) -> None:
    """Refuse content that claims far more memory than its size in the file can hold.

    Args:
        where: file and piece, for the message.
        claimed: bytes that reading takes.
        held: bytes of it in the file.

    Raises:
        BadInput: naming both.
    """
    if claimed > SMALL_BYTES + MAX_GROWTH * held:
        raise BadInput(f"{where} claims {claimed:,} bytes, but has {held:,} in the file.", "Write the file again.")


def read_file(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Raises:
        BadInput: if it is not a regular file, cannot be read, or has more than `limit` bytes.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise _unopened(path, error) from error
    if len(content) > limit:
        raise BadInput(f"{path} has more than {limit:,} bytes, the most allowed.")
    return content


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        BadInput: as `read_file`, or if it is not UTF-8.
    """
    content = read_file(path, limit=limit)
    try:
        return decode_text(content)
    except UnreadableError as error:
        raise BadInput(f"{path} is not a text: {error}.", "Save it as UTF-8.") from error


def parse_json(text: str | bytes, where: str, hint: str = "") -> Any:
    """The value of a JSON document.

    Args:
        text: untrusted.
        where: the file, or the option, for the message.
        hint: what to do if it is not JSON.

    Raises:
        BadInput: if it is not JSON, too long, or outside the bounds.
    """
    try:
        value = decode_json(text)
        _check_strings(value, text)
    except UnreadableError as error:
        raise BadInput(f"{where} is not JSON: {error}.", hint) from error
    return value


def parse_toml(text: str | bytes, where: str, hint: str = "") -> dict[str, Any]:
    """The tables of a TOML document; arguments and errors as `parse_json`."""
    try:
        return decode_toml(text)
    except UnreadableError as error:
        raise BadInput(f"{where} is not TOML: {error}.", hint) from error


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        UnreadableError: if it is not JSON, too long, nested too deeply, or has a number of too many digits.
    """
    content = decode_text(text)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in content else ""
        raise UnreadableError(f"{error.msg} ({line}column {error.colno})") from None
    except RecursionError:
        raise UnreadableError(_too_deep()) from None
    except ValueError:  # Python's own limit of digits
        raise UnreadableError(_too_many_digits()) from None
    if content.count("[") + content.count("{") > MAX_DEPTH or _MANY_DIGITS.search(content):
        check_depth(value)
    return value


def decode_toml(text: str | bytes) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        UnreadableError: as `decode_json`.
    """
    content = decode_text(text)
    if _DOTTED_KEY.search(content):  # the parser's time grows with the square of the length
        raise UnreadableError(_too_deep())
    try:
        value = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise UnreadableError(" ".join(str(error).split()).rstrip(".")) from None
    except RecursionError:
        raise UnreadableError(_too_deep()) from None
    except ValueError as error:  # a number of too many digits, or an impossible date
        raise UnreadableError(str(error) if "digits" not in str(error) else _too_many_digits()) from None
    check_depth(value)
    return value


def decode_text(text: str | bytes) -> str:
    """Decode UTF-8, without a byte order mark.

    Raises:
        UnreadableError: naming the first wrong byte, or the likely encoding.
    """
    if len(text) > MAX_BYTES:
        raise UnreadableError(f"it has {len(text):,} bytes, {MAX_BYTES:,} are allowed")
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in text[:4]:
        raise UnreadableError("it is UTF-16 or binary; UTF-8 is needed")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"byte 0x{text[error.start]:02x} is not UTF-8 ({_place(text, error.start)})") from None


def shorten(text: str, limit: int = 120) -> str:
    """Cut an untrusted text for a message."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def describe_invalid(problem: ErrorDetails, *, levels: int | None = None) -> str:
    """Where a value does not fit, what is allowed there and what was received, of one error of pydantic.

    Args:
        problem: one of `ValidationError.errors()`.
        levels: parts of the place that are named; all when None.
    """
    parts = problem["loc"][:levels]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    if problem["type"] == "missing":
        return f"{place} is missing"
    message = " ".join(problem["msg"].removeprefix("Value error, ").split()).rstrip(".")
    is_choice = problem["type"] in ("literal_error", "enum")
    is_shown = problem["type"] != "value_error" and isinstance(problem["input"], str | int | float)
    received = f" (received {shorten(repr(problem['input']))})" if is_shown else ""
    near = did_you_mean(str(problem["input"]), re.findall(r"'([^']*)'", message)) if is_choice else ""
    return f"{place}: {message}{received}{near}" if place else f"{message}{received}{near}"


def check_depth(value: object, most_levels: int = MAX_DEPTH, most_digits: int = MAX_DIGITS) -> None:
    """Refuse lists and objects nested too deeply, and whole numbers of too many digits; without recursion.

    Raises:
        UnreadableError: if there is one.
    """
    level, most = [value], 10**most_digits
    for depth in count():
        if not level:
            return
        if depth > most_levels:
            raise UnreadableError(_too_deep(most_levels))
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, int) and not -most < item < most:
                raise UnreadableError(_too_many_digits())
        level = inner


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers from 1; decompressed if the name ends in `.zst`.

    Only line feeds end a line, since JSON escapes them in strings.

    Raises:
        BadInput: if it is not a regular file, cannot be read, is not UTF-8, or has a line of over `MAX_BYTES`.
    """
    require_regular(path)
    number = 0
    try:
        with path.open("rb") as file:
            packed = path.suffix == ".zst"
            stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) if packed else file
            lines: IO[bytes] = io.BufferedReader(stream) if packed else file  # pyright: ignore[reportArgumentType]
            for number in count(1):
                if not (line := lines.readline(MAX_BYTES + 1)):
                    return
                if (text := decode_text(line).strip("\n")) and text.strip():
                    yield number, text
    except (OSError, zstandard.ZstdError) as error:
        raise _unopened(path, error) from error
    except UnreadableError as error:
        raise BadInput(f"{path}, line {number}: {error}.", "It has to be JSON lines in UTF-8.") from error


def read_arrays(content: bytes) -> dict[str, Array]:
    """The arrays of an `.npz`, each checked to hold as many bytes as it claims. Nothing is unpickled.

    Raises:
        UnreadableError: if it is not an `.npz`, or claims more than `MAX_ARRAY_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > MAX_ARRAY_BYTES:
                raise UnreadableError(f"its arrays have {total:,} bytes, {MAX_ARRAY_BYTES:,} are allowed")
            return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in archive.infolist()}
    except UnreadableError:
        raise
    except (*_BAD_ZIP, *_BAD_ZIP_FEATURES) as error:
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableError(f"{member.filename} has version {version} of NumPy's format")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    held = len(content) - stream.tell()
    claimed = dtype.itemsize
    for length in shape:
        claimed *= length
    if dtype.hasobject or dtype.kind not in "fiub" or claimed != held:
        raise UnreadableError(f"{member.filename} claims numbers {dtype} of shape {shape} and holds {held:,} bytes")
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _check_strings(value: object, text: str | bytes) -> None:
    """Refuse unpaired surrogates and NUL, which neither files nor tables accept."""
    escape = "\\u" if isinstance(text, str) else b"\\u"
    if escape not in text:  # pyright: ignore[reportOperatorIssue]
        return
    found = json.dumps(value, ensure_ascii=False)
    if _SURROGATE.search(found) or "\\u0000" in found:
        raise UnreadableError("it has a character that is not allowed in text (a lone surrogate, or NUL)")


def _place(text: bytes, position: int) -> str:
    before = text[:position]
    line, start = before.count(b"\n") + 1, before.rfind(b"\n")
    return f"line {line}, column {position - start}"


def _too_deep(levels: int = MAX_DEPTH) -> str:
    return f"it is nested more than {levels} levels deep"


def _too_many_digits() -> str:
    return f"a number has more than {MAX_DIGITS} digits"


def _unopened(path: Path, error: Exception) -> BadInput:
    reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    return BadInput(f"{path} cannot be read: {reason}.".replace("\0", "?"))
