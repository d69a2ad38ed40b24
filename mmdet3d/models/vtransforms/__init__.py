"""View transforms: image features to bird's-eye view."""

from mmdet3d.models.vtransforms.bevdepth import AwareBEVDepth, AwareDBEVDepth
from mmdet3d.models.vtransforms.depth_lss import DepthLSSTransform
from mmdet3d.models.vtransforms.lss import ConvLSSTransform, LSSTransform

__all__ = ["AwareBEVDepth", "AwareDBEVDepth", "ConvLSSTransform", "DepthLSSTransform", "LSSTransform"]
