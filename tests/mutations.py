"""Files broken in many ways, each determined by a seed: for `tests.fuzz`."""

from __future__ import annotations

import gzip
import random
import re
import struct

HEADER_BYTES = 400  # where most of a binary format's decisions are taken
EXTREMES = (0, 1, -1, 2**7, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**53, 2**63 - 1)
ODD_FLOATS = (0.0, -0.0, 1e-45, 1e38, -1e38, float("nan"), float("inf"), float("-inf"))
ODD_WORDS = (
    *("", "nan", "NaN", "inf", "-1", "0", "1e999", "1e-999", "0x10", "1,5", "null", "true", "{}", "[]"),
    *(
        "9" * 400,
        "\N{FULLWIDTH DIGIT ONE}",
        "\N{RIGHT-TO-LEFT OVERRIDE}x",
        "a" * 5000,
        "\0",
        "..",
        "/etc/passwd",
    ),
    *(
        "../../x",
        "C:\\x",
        "%s%n",
        "${HOME}",
        "<script>alert(1)</script>",
        '"',
        "'",
        "\r",
        "\n",
        "\u2028",
        "--",
    ),
)


def mutated(content: bytes, other: bytes, chance: random.Random, *, text: bool = False) -> bytes:
    """content broken once to three times; other: a second valid file, for splicing."""
    packed = content[:2] == b"\x1f\x8b" and chance.random() < 0.6
    if packed:  # What is inside is broken, the packing whole: the format's own reader gets to see it.
        content = gzip.decompress(content)
        other = gzip.decompress(other) if other[:2] == b"\x1f\x8b" else other
    ways = (*BINARY, *TEXT) if text else BINARY
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content = chance.choice(ways)(content, other, chance)
    return gzip.compress(content, 1) if packed else content


def _place(content: bytes, chance: random.Random) -> int:
    end = len(content) if chance.random() < 0.4 else min(len(content), HEADER_BYTES)
    return chance.randrange(max(end, 1))


def _flip(content: bytes, _: bytes, chance: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        if out:
            out[_place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(out)


def _number(content: bytes, _: bytes, chance: random.Random) -> bytes:
    """An extreme number over some bytes, at an even place more often than not."""
    order, kind = chance.choice("<>"), chance.choice("bhiqfd")
    value = chance.choice(ODD_FLOATS if kind in "fd" else EXTREMES)
    size = struct.calcsize(kind)
    packed = (
        struct.pack(order + kind, value)
        if kind in "fd"
        else (int(value) % 2 ** (8 * size)).to_bytes(size, "little" if order == "<" else "big")
    )
    place = _place(content, chance) // size * size
    return content[:place] + packed + content[place + size :]


def _truncate(content: bytes, _: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _extend(content: bytes, _: bytes, chance: random.Random) -> bytes:
    return content + (b"\0" * 1000 if chance.random() < 0.5 else chance.randbytes(chance.randint(1, 1000)))


def _move(content: bytes, _: bytes, chance: random.Random) -> bytes:
    """A block deleted, doubled, or filled."""
    start, size = _place(content, chance), chance.randint(1, 64)
    block, rest = content[start : start + size], content[start + size :]
    return content[:start] + chance.choice((b"", block * 2, b"\xff" * size, b"\0" * size, block[::-1])) + rest


def _splice(content: bytes, other: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)] + other[_place(other, chance) :]


def _word(content: bytes, _: bytes, chance: random.Random) -> bytes:
    """A word or number of a text replaced."""
    words = list(re.finditer(rb"[\w.+-]+", content))
    if not words:
        return chance.choice(ODD_WORDS).encode()
    word = chance.choice(words)
    return content[: word.start()] + chance.choice(ODD_WORDS).encode() + content[word.end() :]


def _line(content: bytes, _: bytes, chance: random.Random) -> bytes:
    """A line dropped, doubled, joined to the next, or put elsewhere."""
    lines = content.split(b"\n")
    at = chance.randrange(len(lines))
    line = lines.pop(at)
    match chance.randrange(4):
        case 0:
            pass
        case 1:
            lines[at:at] = [line] * chance.choice((2, 50))
        case 2:
            lines.insert(chance.randrange(len(lines) + 1), line)
        case _:
            lines.insert(at, line + b",")
    return b"\n".join(lines)


def _insert(content: bytes, _: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return content[:place] + chance.choice(ODD_WORDS).encode() + content[place:]


def _encode(content: bytes, _: bytes, chance: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(chance.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7")), "replace")


def _nest(content: bytes, _: bytes, chance: random.Random) -> bytes:
    """Brackets without end: a parser that recurses runs out of stack."""
    place = _place(content, chance)
    return content[:place] + chance.choice((b"[", b'{"a":', b'"', b"(")) * 100_000 + content[place:]


BINARY = (_flip, _flip, _number, _number, _truncate, _extend, _move, _splice)
TEXT = (_word, _word, _word, _line, _line, _insert, _encode, _nest)
