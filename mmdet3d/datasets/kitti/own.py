"""Pictures of one's own, laid out as KITTI's test frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmdet3d.datasets.kitti.files import read_calibration

__all__ = ["lay_out"]


def lay_out(images: Sequence[str | Path], calibration: str | Path | None, root: Path) -> None:
    """Make `root` a KITTI folder whose split `test` are these pictures, as links.

    Args:
        images: .png or .jpg; a frame is called as its file is.
        calibration: a KITTI calibration of all of them (`P2: fx 0 cx 0 0 fy cy 0 0 0 1 0` suffices); None takes the
            `.txt` beside each.

    Raises:
        FileNotFoundError: a picture or a calibration is missing.
        ValueError: a malformed calibration, another suffix, or two pictures of one name.
    """
    frames = root / "testing"
    for folder in ("image_2", "calib"):
        (frames / folder).mkdir(parents=True)
    names: list[str] = []
    for image in map(Path, images):
        if not image.is_file():
            raise FileNotFoundError(f"--image {image} does not exist")
        if image.suffix not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"--image {image} must be a .png or .jpg file")
        if image.stem in names:
            raise ValueError(f"two pictures are called {image.stem}; draw them one after the other, or rename one")
        matrices = Path(calibration or image.with_suffix(".txt"))
        if not matrices.is_file():
            raise FileNotFoundError(
                f"{matrices}, the calibration of {image}, does not exist; write `P2: fx 0 cx 0 0 fy cy 0 0 0 1 0` (in "
                "pixels) into it, or name one for all pictures with --calib"
            )
        read_calibration(matrices)
        names.append(image.stem)
        (frames / "image_2" / image.name).symlink_to(image.resolve())
        (frames / "calib" / f"{image.stem}.txt").symlink_to(matrices.resolve())
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "test.txt").write_text("".join(f"{name}\n" for name in names))
