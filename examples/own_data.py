"""Write recordings of your own as nuScenes' tables; here a made-up car park, seen by a LiDAR and any number of cameras.

    python examples/own_data.py data/own --cameras 4

`rig` says where your sensors are and `record` what they saw: replace these two. `write` makes the tables, and knows
nothing of where the data come from. docs/data.md goes on from here.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

VERSION = "v1.0-own"
SIZE = (400, 225)  # of the images, pixels
INTERVAL = 0.5  # seconds between two frames
# How an object is described: a category of nuScenes, or the name of a class.
CATEGORY = "vehicle.car"


def rig(cameras):
    """By channel: translation (x ahead, y left, z up, metres), rotation from sensor to car, 3x3 intrinsics or None.

    Cameras look along their z, x to the right, y down. The scanner is called LIDAR_TOP; its x points to the right.
    """
    sensors = {"LIDAR_TOP": ((0.9, 0.0, 1.8), turn(-np.pi / 2), None)}
    looks_ahead = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    # One camera sees 70 degrees; of several, each sees a little more than its share of the circle.
    view = np.radians(70 if cameras == 1 else min(100, 1.15 * 360 / cameras))
    focal = SIZE[0] / 2 / np.tan(view / 2)
    intrinsics = [[focal, 0, SIZE[0] / 2], [0, focal, SIZE[1] / 2], [0, 0, 1]]
    for i in range(cameras):
        yaw = 2 * np.pi * i / cameras
        place = (0.9 + 0.8 * np.cos(yaw), 0.5 * np.sin(yaw), 1.5)
        sensors[f"CAM_{i}"] = (place, turn(yaw) @ looks_ahead, intrinsics)
    return sensors


def record(scene, frame, sensors):
    """What the sensors of one frame saw: pose of the car in the world, data by channel, and the objects.

    Images are pictures; the scan is (P, 5): x, y, z, intensity, ring, in the scanner's frame. An object is its name,
    which it keeps from frame to frame, its centre (3,) and yaw in the world, and its width, length and height.
    """
    rng = np.random.default_rng([scene, frame])
    car = pose(turn(0.0), (3.0 * INTERVAL * frame, 0.0, 0.0))
    objects = {f"parked-{i}": ((6.0 * i - 12, 7.0 * (-1) ** i, 0.8), 0.1 * i, (1.9, 4.5, 1.6)) for i in range(6)}
    objects["ahead"] = ((12.0 + 5.0 * INTERVAL * frame, 0.0, 0.8), 0.0, (1.9, 4.5, 1.6))
    data = {}
    for channel, (place, rotation, intrinsics) in sensors.items():
        to_sensor = np.linalg.inv(car @ pose(rotation, place))
        if intrinsics is None:
            surface = np.concatenate([on_surface(o, rng) for o in objects.values()])
            ground = np.column_stack([rng.uniform(-30, 30, (4000, 2)) + car[:2, 3], np.zeros(4000)])
            points = moved(np.concatenate([surface, ground]), to_sensor)
            data[channel] = np.column_stack([points, rng.uniform(0, 255, len(points)), np.zeros(len(points))])
        else:
            data[channel] = picture([moved(corners(o), to_sensor) for o in objects.values()], np.array(intrinsics))
    return car, data, objects


# -- from here on nothing need be changed ---------------------------------------------------------------------------


def write(root, scenes, frames, cameras):
    """Files of all sensors, and the tables that say what they are."""
    sensors, tables = rig(cameras), defaultdict(list)
    tables["category"] = [{"token": token(CATEGORY), "name": CATEGORY, "description": ""}]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    tables["attribute"] = [{"token": token("parked"), "name": "vehicle.parked", "description": ""}]
    for channel, (place, rotation, intrinsics) in sensors.items():
        modality = "camera" if intrinsics else "lidar"
        tables["sensor"].append({"token": token("sensor", channel), "channel": channel, "modality": modality})
        row = {"token": token("mount", channel), "sensor_token": token("sensor", channel), "translation": list(place)}
        row |= {"rotation": quaternion(rotation), "camera_intrinsic": intrinsics or []}
        tables["calibrated_sensor"].append(row)
    for scene in range(scenes):
        write_scene(root, tables, sensors, scene, frames)
    folder = root / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
    names = [row["name"] for row in tables["scene"]]
    (folder / "splits.json").write_text(json.dumps({"own_train": names[:-1], "own_val": names[-1:]}))


def write_scene(root, tables, sensors, scene, frames):
    name = f"own-{scene:04d}"
    samples = [token(name, k) for k in range(frames)]
    tables["log"].append({"token": token(name, "log"), "logfile": name, "vehicle": "", "location": "own"})
    tables["log"][-1]["date_captured"] = "2024-01-01"
    tables["map"].append({"token": token(name, "map"), "log_tokens": [token(name, "log")], "filename": ""})
    tables["map"][-1]["category"] = "semantic_prior"
    row = {"token": token(name), "log_token": token(name, "log"), "name": name, "description": ""}
    row |= {"nbr_samples": frames, "first_sample_token": samples[0], "last_sample_token": samples[-1]}
    tables["scene"].append(row)
    seen = defaultdict(dict)
    for k in range(frames):
        time = 1_700_000_000_000_000 + scene * 1_000_000_000 + round(k * INTERVAL * 1e6)  # microseconds
        row = {"token": samples[k], "timestamp": time, "scene_token": token(name)}
        tables["sample"].append(row | linked(samples, k))
        car, data, objects = record(scene, k, sensors)
        for channel, content in data.items():
            scan = channel == "LIDAR_TOP"
            file = f"samples/{channel}/{name}__{channel}__{time}.{'pcd.bin' if scan else 'jpg'}"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            content.astype("<f4").tofile(root / file) if scan else content.save(root / file, quality=90)
            tokens = [token(name, channel, i) for i in range(frames)]
            pose_row = {"token": tokens[k], "timestamp": time, "translation": car[:3, 3].tolist()}
            tables["ego_pose"].append(pose_row | {"rotation": quaternion(car[:3, :3])})
            row = {"token": tokens[k], "sample_token": samples[k], "ego_pose_token": tokens[k], "timestamp": time}
            row |= {"calibrated_sensor_token": token("mount", channel), "filename": file, "is_key_frame": True}
            row |= {"width": 0 if scan else SIZE[0], "height": 0 if scan else SIZE[1]}
            tables["sample_data"].append(row | {"fileformat": "pcd" if scan else "jpg"} | linked(tokens, k))
        place, rotation, _ = sensors["LIDAR_TOP"]
        points = moved(data["LIDAR_TOP"][:, :3], car @ pose(rotation, place))
        for one, (centre, yaw, size) in objects.items():
            seen[one][k] = {"translation": list(centre), "size": list(size), "rotation": quaternion(turn(yaw))}
            seen[one][k]["num_lidar_pts"] = inside(points, centre, yaw, size)
    for one, rows in seen.items():
        tokens = [token(name, one, k) for k in rows]
        row = {"token": token(name, one), "category_token": token(CATEGORY), "nbr_annotations": len(rows)}
        row |= {"first_annotation_token": tokens[0], "last_annotation_token": tokens[-1]}
        tables["instance"].append(row)
        for i, (k, about) in enumerate(rows.items()):
            row = {"token": tokens[i], "sample_token": samples[k], "instance_token": token(name, one)}
            row |= {"attribute_tokens": [], "visibility_token": "4", "num_radar_pts": 0}
            tables["sample_annotation"].append(row | about | linked(tokens, i))


def linked(tokens, i):
    """To the one before and the one after; velocities are taken from these links."""
    return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}


def token(*parts):
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def turn(yaw):
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def pose(rotation, place):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, place
    return matrix


def quaternion(rotation):
    """w, x, y, z of a rotation matrix: of the symmetric matrix that it makes, the eigenvector of the largest value."""
    r = rotation
    k = [
        [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
        [0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
        [0, 0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
        [0, 0, 0, r[2, 2] - r[0, 0] - r[1, 1]],
    ]
    return np.linalg.eigh(np.array(k), UPLO="U")[1][:, -1].tolist()


def moved(points, matrix):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def corners(one):
    centre, yaw, (width, length, height) = one
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    return moved(signs * (length, width, height), pose(turn(yaw), centre))


def on_surface(one, rng):
    centre, yaw, (width, length, height) = one
    points = rng.uniform(-0.49, 0.49, (120, 3))
    side = rng.integers(0, 2, 120)
    points[np.arange(120), side] = 0.49 * rng.choice([-1, 1], 120)
    return moved(points * (length, width, height), pose(turn(yaw), centre))


def inside(points, centre, yaw, size):
    width, length, height = size
    local = (points - centre) @ turn(yaw)
    return int((np.abs(local) < np.array([length, width, height]) / 2).all(1).sum())


def picture(solids, intrinsics):
    """A grey ground, a blue sky, and the outlines of what stands there."""
    image = Image.new("RGB", SIZE, (150, 180, 215))
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, SIZE[1] // 2, *SIZE], (110, 110, 110))
    for points in sorted(solids, key=lambda p: -p[:, 2].mean()):
        if points[:, 2].min() > 0.5:
            u, v = ((points @ intrinsics.T)[:, :2] / points[:, 2:]).T
            draw.rectangle([u.min(), v.min(), u.max(), v.max()], (150, 40, 40), (20, 20, 20))
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that is written")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--frames", type=int, default=3, help="of a scene")
    args = parser.parse_args()
    write(args.root, args.scenes, args.frames, args.cameras)
    print(f"{args.root}: {args.scenes} scenes of {args.frames} frames by {args.cameras} cameras, version {VERSION}")


if __name__ == "__main__":
    main()
