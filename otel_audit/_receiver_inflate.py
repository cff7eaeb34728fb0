"""Decompression of request bodies, block by block, so that a few kilobytes cannot ask for all the memory there is."""

import zlib
from collections.abc import Callable, Iterator
from typing import Final, Literal

from otel_audit.errors import DecodeError, TooLargeError

__all__ = ["inflate"]

_BLOCK_BYTES: Final = 1 << 20
_SLICE_BYTES: Final = 1 << 16
_WBITS: Final = {"gzip": 31, "zlib": 15}


def inflate(data: bytes, compression: Literal["gzip", "zlib"], limit_bytes: int, grow: Callable[[int], None]) -> bytes:
    """`data` decompressed, never holding more than `limit_bytes` and one block of it.

    Args:
        data: the compressed bytes.
        compression: how they are compressed.
        limit_bytes: the largest result.
        grow: told how many bytes are about to be added to the result; may raise to stop.

    Raises:
        TooLargeError: the result would be larger than `limit_bytes`.
        DecodeError: `data` is damaged or ends early.
    """
    blocks: list[bytes] = []
    total = 0
    try:
        for block in _inflated(data, _WBITS[compression]):
            total += len(block)
            if total > limit_bytes:
                raise TooLargeError("decompress", "request", f"over the limit of {limit_bytes} bytes")
            grow(len(block))
            blocks.append(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)
    except zlib.error as e:
        raise DecodeError("decompress", "request", f"damaged {compression} data: {e}") from e
    finally:
        blocks.clear()  # an error would keep them as long as someone looks at it


def _inflated(data: bytes, wbits: int) -> Iterator[bytes]:
    """The decompressed blocks of `data`; input goes in by slices, because zlib copies what it leaves over."""
    stream = zlib.decompressobj(wbits)
    view = memoryview(data)
    for start in range(0, len(view), _SLICE_BYTES):
        rest: bytes | memoryview = view[start : start + _SLICE_BYTES]
        while len(rest):
            if stream.eof:  # the next gzip member
                stream = zlib.decompressobj(wbits)
            yield stream.decompress(rest, _BLOCK_BYTES)
            rest = stream.unused_data or stream.unconsumed_tail
    while block := stream.decompress(b"", _BLOCK_BYTES):  # held back by the size of the last block
        yield block
    if not stream.eof:
        raise zlib.error("it ends early")
