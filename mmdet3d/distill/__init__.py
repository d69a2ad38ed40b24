"""Distillation: a teacher, a student and a list of losses between their taps."""

from mmdet3d.distill.distiller import Distiller
from mmdet3d.distill.label_detector import LabelEncoderDetector
from mmdet3d.distill.losses import DistillLoss
from mmdet3d.distill.teacher import LiveTeacher, StoredTeacher, Teacher

__all__ = ["DistillLoss", "Distiller", "LabelEncoderDetector", "LiveTeacher", "StoredTeacher", "Teacher"]
