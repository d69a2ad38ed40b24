#!/usr/bin/env bash
# An environment of its own for mmdetection3d 1.4, which has our import name: benchmarks/peers/build.sh FOLDER
# mmcv's operators are compiled (minutes of CPU time; JOBS=4 uses more cores). Python 3.11, no GPU.
set -euo pipefail

folder=${1:?usage: build.sh FOLDER}
"${PYTHON:-python3.11}" -m venv "$folder"
# Only the environment's own tools: a CUDA compiler on the path would be asked about a GPU.
export PATH=$(cd "$folder" && pwd)/bin:/usr/bin:/bin

# setuptools 82 took pkg_resources away, which mmcv's setup.py imports. One opencv version, the last for numpy 1.
pip install torch==2.13.0 'numpy<2' 'setuptools<82' wheel ninja psutil packaging

# Of mmcv's 77 files 63 begin with one header, whose parsing is most of their time: it is compiled beforehand, with the same
# flags. No debug information, otherwise mmcv's own options. Run again after an interruption, it goes on.
export CFLAGS=-g0
sources=$folder/mmcv-2.1.0
[ -d "$sources" ] || pip download --no-build-isolation --no-deps --no-binary mmcv --dest "$folder" mmcv==2.1.0
[ -d "$sources" ] || tar -xzf "$sources.tar.gz" -C "$folder"
flags=$(python - <<'END'
import sysconfig
from torch.utils.cpp_extension import include_paths

folders = [*include_paths(), sysconfig.get_path("include")]
options = sysconfig.get_config_var("CFLAGS"), "-fPIC", *(f"-I{f}" for f in folders)
print(*options, "-std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext")
END
)
read -ra flags <<< "$flags"
common=$sources/mmcv/ops/csrc/common
header=$common/pytorch_cpp_helper.hpp
[ -f "$header.gch" ] || c++ "${flags[@]}" -g0 -I"$common" -x c++-header "$header" -o "$header.gch"
MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS=${JOBS:-2} pip install --no-build-isolation --no-deps "$sources"

pip install 'numpy<2' torch==2.13.0 mmengine==0.10.7 spconv==2.3.8 numba opencv-python-headless==4.11.0.86 \
    opencv-python==4.11.0.86 pycocotools shapely==2.0.7 scipy terminaltables tqdm six scikit-image matplotlib
# Their metadata asks for open3d and dataset kits, which CenterPoint does not import.
pip install --no-deps mmdet==3.3.0 mmdet3d==1.4.0
# The Qt build wants libGL; the headless one, unpacked last, does not.
pip install --force-reinstall --no-deps opencv-python-headless==4.11.0.86

python -c "import mmcv.ops, spconv.pytorch, mmdet3d.models; print('mmdet3d', mmdet3d.__version__)"
