"""Convolutions on the occupied sites of a 3-D grid (SECOND, submanifold sparse convolutional networks)."""

from mmdet3d.ops.sparse_conv.convolution import sparse_convolution
from mmdet3d.ops.sparse_conv.modules import SparseConv3d, SparseSequential, SubMConv3d
from mmdet3d.ops.sparse_conv.tables import NeighborTable, strided_table, submanifold_table
from mmdet3d.ops.sparse_conv.tensor import SparseTensor

__all__ = [
    "NeighborTable",
    "SparseConv3d",
    "SparseSequential",
    "SparseTensor",
    "SubMConv3d",
    "sparse_convolution",
    "strided_table",
    "submanifold_table",
]
