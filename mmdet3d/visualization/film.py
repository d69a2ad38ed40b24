"""Pictures in turn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mmdet3d.visualization.layers import BACKGROUND

__all__ = ["FORMATS", "check_film", "write_film"]

FORMATS = (".gif", ".webp", ".mp4")
_QUALITY = 60  # of WebP


def check_film(path: Path) -> None:
    """Whether `write_film` can write it, before minutes are spent on what it should hold.

    Raises:
        ValueError: an unknown ending, or one whose writer is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--video {path} must end in one of {', '.join(FORMATS)}")
    if path.suffix.lower() == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError:
            raise ValueError(
                f"--video {path} needs imageio-ffmpeg: pip install 'distill3d[video]', or end the name in .gif or .webp"
            ) from None


def write_film(pictures: Iterable[Image.Image], path: Path, fps: float) -> Path:
    """Write pictures one after another as an endless GIF or WebP, or as MP4 (H.264).

    Args:
        pictures: those smaller than the largest get white to their right and below.
        fps: pictures per second.

    Raises:
        ValueError: see `check_film`, or there is no picture.
    """
    check_film(path)
    frames = [picture.convert("RGB") for picture in pictures]
    if not frames:
        raise ValueError(f"there is no picture to write to {path}")
    # Encoders of video want even sides.
    size = tuple(-(-max(sides) // 2) * 2 for sides in zip(*(frame.size for frame in frames), strict=True))
    frames = [_filled(frame, size) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        _write_mp4(frames, path, fps)
        return path
    options = {"quality": _QUALITY, "method": 4} if path.suffix.lower() == ".webp" else {"optimize": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, **options)
    return path


def _write_mp4(frames: list[Image.Image], path: Path, fps: float) -> None:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(str(path), frames[0].size, fps=fps, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(frame.tobytes())
    writer.close()


def _filled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    out = Image.new("RGB", size, BACKGROUND)
    out.paste(picture, (0, 0))
    return out
