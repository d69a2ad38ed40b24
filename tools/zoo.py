"""`distill3d zoo` by its published path, with the package of this checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet3d.commands.zoo import main
from mmdet3d.engine.command import run

if __name__ == "__main__":
    run(main)
