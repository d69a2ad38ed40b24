"""Write what a CenterPoint of OpenMMLab's mmdetection3d 1.4 answers, so that it can teach students of Distill3D.

    python export_mmdet3d_teacher.py CONFIG.py CHECKPOINT.pth FOLDER [--ann-file nuscenes_infos_train.pkl]

Run it in an environment of mmdetection3d that has safetensors; it needs nothing of Distill3D, whose docs/teachers.md
describes the files. A distillation then says `model.teacher: {answers: FOLDER}`.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def export(model, samples, folder):
    """`samples`: pairs of a frame's token and the argument of `model.test_step` for this frame alone."""
    seen, head = {}, model.pts_bbox_head
    model.pts_neck.register_forward_hook(lambda _, __, value: seen.update(neck=value))
    head.register_forward_hook(lambda _, __, value: seen.update(head=value))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for token, data in samples:
        with torch.no_grad():
            model.test_step(data)
        (bev,) = seen["neck"]  # of one level
        tensors = {"decoder": our_axes("decoder", bev)}
        for t, (task,) in enumerate(seen["head"]):
            tensors |= {f"heads.object/{t}/{name}": our_axes(name, value) for name, value in task.items()}
        save_file({k: v.half().contiguous().cpu() for k, v in tensors.items()}, folder / f"{token}.safetensors")
        (folder / "metadata.json").write_text(json.dumps(describe(head, bev), indent=1))


def our_axes(name, value):
    """(B, C, y, x) to (B, C, x, y); sizes as width, length, height; the heading as its negative vector."""
    value = value.transpose(2, 3)
    if name == "dim":
        return value[:, [1, 0, 2]]
    return -value[:, [1, 0]] if name == "rot" else value


def describe(head, bev):
    coder = head.bbox_coder
    cell = [float(size) * coder.out_size_factor for size in coder.voxel_size[:2]]
    grid = {"lower": [float(v) for v in coder.pc_range[:2]], "cell": cell, "shape": [bev.shape[3], bev.shape[2]]}
    return {"grid": grid, "tasks": [list(names) for names in head.class_names], "norm_bbox": bool(head.norm_bbox)}


def main():
    from mmdet3d.apis import init_model
    from mmengine.config import Config
    from mmengine.runner import Runner

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "checkpoint", "folder"):
        parser.add_argument(name)
    parser.add_argument(
        "--ann-file", default="nuscenes_infos_train.pkl", help="the frames, below the config's data_root"
    )
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    config = Config.fromfile(options.config)
    config.test_dataloader.batch_size = 1  # frames in order, as the test pipeline sees them: without augmentation
    config.test_dataloader.dataset.ann_file = options.ann_file
    model = init_model(config, options.checkpoint, device=options.device)
    loader = Runner.build_dataloader(config.test_dataloader)
    tokens = (loader.dataset.get_data_info(k)["token"] for k in range(len(loader.dataset)))
    export(model, zip(tokens, loader, strict=True), options.folder)


if __name__ == "__main__":
    main()
