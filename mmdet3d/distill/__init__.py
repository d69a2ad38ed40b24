"""Distillation: teachers, a student and a list of losses between their taps."""

from mmdet3d.distill.distiller import Distiller
from mmdet3d.distill.label_detector import LabelEncoderDetector
from mmdet3d.distill.losses import DistillLoss
from mmdet3d.distill.module_teacher import ModuleTeacher
from mmdet3d.distill.outline import Outline
from mmdet3d.distill.recorded_teacher import RecordedTeacher
from mmdet3d.distill.teacher import LiveTeacher, StoredTeacher, Teacher

__all__ = [
    "DistillLoss",
    "Distiller",
    "LabelEncoderDetector",
    "LiveTeacher",
    "ModuleTeacher",
    "Outline",
    "RecordedTeacher",
    "StoredTeacher",
    "Teacher",
]
