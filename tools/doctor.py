"""`distill3d doctor` by its published path, with the package of this checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet3d.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
