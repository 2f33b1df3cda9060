"""ISO base media files (AVIF): where the bytes of the items lie, read from the boxes alone.

Source: ISO/IEC 14496-12, 4.2 (boxes) and 8.11.3 (iloc).
"""

from collections.abc import Iterator


def item_ends(data: bytes) -> Iterator[int]:
    """The byte behind each extent of the items that lie in the file itself. Raises IndexError if a box is cut off."""
    meta_start, meta_end = _box(data, b"meta", 0, len(data))
    start, end = _box(data, b"iloc", meta_start + 4, meta_end)
    iloc = data[start:end]
    version = iloc[0]
    offset_size, length_size, base_size, index_size = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15
    count_size = 2 if version < 2 else 4
    at = 6 + count_size
    for _ in range(uint(iloc, 6, count_size)):
        at += count_size  # item_ID
        method = uint(iloc, at, 2) & 15 if version else 0
        at += 4 if version else 2  # construction_method, data_reference_index
        base = uint(iloc, at, base_size)
        num_extents = uint(iloc, at + base_size, 2)
        at += base_size + 2
        for _ in range(num_extents if offset_size + length_size else 0):
            at += index_size if version else 0
            offset, length = uint(iloc, at, offset_size), uint(iloc, at + offset_size, length_size)
            at += offset_size + length_size
            if method == 0:
                yield base + offset + length


def uint(data: bytes, at: int, size: int) -> int:
    """Unsigned big-endian integer; raises IndexError behind the end."""
    if at + size > len(data):
        raise IndexError(f"{len(data)} bytes, a number at byte {at}")
    return int.from_bytes(data[at : at + size])


def _box(data: bytes, kind: bytes, at: int, end: int) -> tuple[int, int]:
    """(start, end) of the content of the first box of this kind between two bytes."""
    while at + 8 <= end:
        size, content = uint(data, at, 4), at + 8
        if size == 1:
            size, content = uint(data, content, 8), content + 8
        box_end = at + size if size else end
        if not content <= box_end <= end:
            break
        if data[at + 4 : at + 8] == kind:
            return content, box_end
        at = box_end
    raise IndexError(f"no whole {kind.decode()} box in {len(data)} bytes")
