"""The records of an uncompressed zip archive, which `torch.save` writes, and where they are.

zipfile would do, but its memory grows with what a directory claims, and it copies what it reads.
"""

import struct
import zlib
from typing import NamedTuple

from flaxcnn.errors import UserError

Buffer = memoryview

MAX_RECORDS = 100_000  # NASNet-A Large has 1,500 tensors

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class Record(NamedTuple):
    """Where a record's bytes are in the file."""

    offset: int
    size: int
    crc: int  # 0: not computed (`torch.serialization.set_crc32_options`)
    plain: bool  # neither compressed nor encrypted


def list_records(file: Buffer) -> dict[str, Record]:
    """Lists the records of an archive by their names.

    Raises UserError for repeated ones and those outside of the file.
    """
    start, size, count = _find_directory(file)
    if count > MAX_RECORDS:
        raise UserError(f"it says that it has {count} records, and may have {MAX_RECORDS}")
    records: dict[str, Record] = {}
    place = start
    for _ in range(count):
        if place + _ENTRY.size > start + size:
            raise UserError("its directory ends early")
        entry = _ENTRY.unpack_from(file, place)
        signature, _, _, flags, method, _, _, crc, packed, unpacked, *lengths, _, _, _, local = (
            entry
        )
        if signature != b"PK\1\2":
            raise UserError("its directory is damaged")
        name_length, extra_length, comment_length = lengths
        after = place + _ENTRY.size + name_length
        name = bytes(file[place + _ENTRY.size : after]).decode("utf-8", "replace")
        extra = bytes(file[after : after + extra_length])
        unpacked, packed, local = _widen(extra, unpacked, packed, local)
        place = after + extra_length + comment_length
        if name in records:
            raise UserError(f"it has two records {name!r}")
        offset = _find_data(file, local, name)
        if offset + packed > start:
            raise UserError(f"its record {name!r} ends outside of the file")
        plain = method == 0 and packed == unpacked and not flags & 1
        records[name] = Record(offset, packed, crc, plain)
    return records


def read_record(file: Buffer, records: dict[str, Record], name: str) -> Buffer:
    """The bytes of a record, checked by its CRC where it has one."""
    if name not in records:
        raise UserError(f"it has no record {name!r}")
    record = records[name]
    if not record.plain:
        raise UserError(
            f"its record {name!r} is compressed or encrypted, which torch.save's are not"
        )
    content = file[record.offset : record.offset + record.size]
    if record.crc and zlib.crc32(content) != record.crc:
        raise UserError(f"its record {name!r} is damaged: the CRC differs")
    return content


def _find_directory(file: Buffer) -> tuple[int, int, int]:
    """Where the directory begins, its size and its number of entries."""
    tail = max(0, len(file) - 65_557)  # a comment has at most 65,535 bytes
    end = tail + bytes(file[tail:]).rfind(b"PK\5\6")
    if end < tail or end + _END.size > len(file):
        raise UserError("it has no directory at its end: it is cut short")
    _, disk, _, _, count, size, start, _ = _END.unpack_from(file, end)
    locator = end - _END_64_LOCATOR.size
    if 0xFFFF in (count, disk) or 0xFFFFFFFF in (size, start):
        if locator < 0 or file[locator : locator + 4] != b"PK\6\7":
            raise UserError("its directory is damaged")
        end = _END_64_LOCATOR.unpack_from(file, locator)[2]
        if end > locator - _END_64.size or file[end : end + 4] != b"PK\6\6":
            raise UserError("its directory is damaged")
        *_, count, size, start = _END_64.unpack_from(file, end)
    if start + size > end:
        raise UserError("its directory lies outside of the file")
    return start, size, count


def _widen(extra: bytes, *values: int) -> tuple[int, ...]:
    """Takes from the zip64 field, in order, what does not fit into 32 bits."""
    wide: list[int] = []
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            field = extra[place + 4 : place + 4 + length]
            wide = list(struct.unpack_from(f"<{len(field) // 8}Q", field))
        place += 4 + length
    try:
        return tuple(wide.pop(0) if value == 0xFFFFFFFF else value for value in values)
    except IndexError:
        raise UserError("its directory is damaged") from None


def _find_data(file: Buffer, local: int, name: str) -> int:
    """Where the bytes of the record begin whose header is at `local`."""
    if local + _LOCAL.size > len(file) or file[local : local + 4] != b"PK\3\4":
        raise UserError(f"its record {name!r} lies outside of the file")
    *_, name_length, extra_length = _LOCAL.unpack_from(file, local)
    return local + _LOCAL.size + name_length + extra_length
