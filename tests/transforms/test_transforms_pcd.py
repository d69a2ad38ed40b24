"""Point files of named fields, in each of the three encodings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmdet3d.datasets.transforms.pcd import read_pcd

TIME = 1_700_000_000_123_456_789
TABLE = np.array([(1.5, TIME, 7), (-2.25, TIME + 1, -3)], [("x", "<f4"), ("timestamp", "<u8"), ("ring", "<i2")])
FIELDS = ("x", "timestamp", "ring")


def write(path: Path, data: str, body: bytes) -> Path:
    header = "FIELDS x timestamp ring\nSIZE 4 8 2\nTYPE F U I\nCOUNT 1 1 1\nWIDTH 2\nHEIGHT 1\nPOINTS 2\n"
    path.write_bytes(f"VERSION 0.7\n{header}DATA {data}\n".encode() + body)
    return path


def columns() -> bytes:
    return b"".join(TABLE[name].tobytes() for name in TABLE.dtype.names)


def literals(raw: bytes) -> bytes:
    """LZF without a copy: runs of up to 32 bytes, each after its length less one."""
    runs = [raw[k : k + 32] for k in range(0, len(raw), 32)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def packed(raw: bytes, size: int) -> bytes:
    return len(raw).to_bytes(4, "little") + size.to_bytes(4, "little") + raw


BODIES = {
    "ascii": f"1.5 {TIME} 7\n-2.25 {TIME + 1} -3\n".encode(),
    "binary": TABLE.tobytes(),
    "binary_compressed": packed(literals(columns()), len(columns())),
}


@pytest.mark.parametrize("data", BODIES)
def test_every_encoding_keeps_every_digit(data: str, tmp_path: Path) -> None:
    found = read_pcd(write(tmp_path / "a.pcd", data, BODIES[data]), FIELDS, "point")
    for name in FIELDS:
        np.testing.assert_array_equal(found[name], TABLE[name])


def test_copies_of_a_compressed_file(tmp_path: Path) -> None:
    """Zeros by hand: one literal, a copy of 8 (length 6 + 2) that runs into itself, one of 19 (7 + 10 + 2)."""
    raw = bytes([0, 0]) + bytes([6 << 5, 0]) + bytes([7 << 5, 10, 0])
    found = read_pcd(write(tmp_path / "a.pcd", "binary_compressed", packed(raw, 28)), FIELDS, "point")
    assert found["x"].tolist() == [0, 0] and found["timestamp"].tolist() == [0, 0] and len(found["ring"]) == 2
    # "abc", then nine bytes from three back.
    raw = b"\x02abc" + bytes([7 << 5, 0, 2]) + literals(bytes(16))
    found = read_pcd(write(tmp_path / "a.pcd", "binary_compressed", packed(raw, 28)), FIELDS, "point")
    assert found["x"].tobytes() == b"abcabcab" and found["timestamp"][0] == int.from_bytes(b"cabc" + bytes(4), "little")


@pytest.mark.parametrize(
    ("data", "body", "message"),
    [
        ("binary", BODIES["binary"][:-1], "announces 2 points but holds 1; it is truncated"),
        ("ascii", b"1 2 3\n", "announces 2 points of 3 numbers but holds 1 lines"),
        ("ascii", b"1 2 3\n1 x 3\n", "holds a word that is no number"),
        ("binary_compressed", b"\x01", "compressed part is cut off or damaged"),
        ("binary_compressed", packed(b"\x20\x05", 28), "compressed part is cut off or damaged"),
        ("binary_compressed", packed(literals(columns()), 27), "compressed part is cut off or damaged"),
        ("binary_compressed", BODIES["binary_compressed"][:-3], "compressed part is cut off or damaged"),
        ("zipped", b"", "holds DATA zipped, of which there is none"),
    ],
)
def test_damaged_files(data: str, body: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_pcd(write(tmp_path / "a.pcd", data, body), FIELDS, "point")


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pcd", "binary", BODIES["binary"])
    with pytest.raises(ValueError, match=r"point file .* has no y \(its fields: x, timestamp, ring\); write it anew"):
        read_pcd(file, ("x", "y"), "point")
