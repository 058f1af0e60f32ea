"""The products that everything sparse is made of, by whatever is fastest on the device.

    sum_rows      weighted sums of named rows of a table, one for each bag of names
    sample_rows   inner products of named rows of two tables

On a CPU they are torch's own operators for embedding bags; on a GPU Triton kernels, which come with torch there. A
third, of two sparse matrices, is MKL's, and only there where torch was built with it.
"""

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sum_rows(
    table: Float[Tensor, "n d"],
    ids: Int[Tensor, " entries"],
    starts: Int[Tensor, " bags_plus_1"],
    weights: Float[Tensor, " entries"],
) -> Float[Tensor, "bags d"]:
    """For each bag, entries starts[i] to starts[i + 1]: the sum of `table`'s rows named by `ids`, times `weights`."""
    if _has_kernels(table):
        from fsae.autoencoders import triton_products

        return triton_products.sum_rows(table.contiguous(), ids, starts, weights.contiguous())
    # Without what autograd would need: the gradients are taken by other products.
    return torch.ops.aten._embedding_bag_forward_only(
        table.contiguous(), ids, starts, False, 0, False, weights.detach(), True
    )[0]


def sample_rows(
    X: Float[Tensor, "batch d"],
    W: Float[Tensor, "n d"],
    rows: Int[Tensor, " entries"],
    columns: Int[Tensor, " entries"],
    offsets: Int[Tensor, " batch_plus_1"],
) -> Float[Tensor, " entries"]:
    """X[row] . W[column] of each entry; `offsets` say where each of X's rows begins among the entries."""
    if _has_kernels(X):
        from fsae.autoencoders import triton_products

        return triton_products.sample_rows(X.contiguous(), W.contiguous(), rows, columns)
    # The gradient of a weighted bag sum in its weights is exactly this product.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        X.contiguous(), W.contiguous(), columns, offsets, rows, 0
    )


def has_sparse_product(tensor: Tensor) -> bool:
    """Whether `sparse_product` can be had where this tensor is."""
    return tensor.device.type == "cpu" and torch.backends.mkl.is_available()


def sparse_product(
    left: tuple[Int[Tensor, " rows_plus_1"], Int[Tensor, " entries"], Float[Tensor, " entries"]],
    right: tuple[Int[Tensor, " inner_plus_1"], Int[Tensor, " entries"], Float[Tensor, " entries"]],
    width: int,
) -> Float[Tensor, "rows {width}"]:
    """The product, dense, of two sparse matrices, each as offsets, columns and values of its compressed rows."""
    rows, inner = len(left[0]) - 1, len(right[0]) - 1
    product = left[2].new_empty(rows, width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        A, B = (
            torch.sparse_csr_tensor(offsets.int(), columns.int(), values, shape, check_invariants=False)
            for (offsets, columns, values), shape in ((left, (rows, inner)), (right, (inner, width)))
        )
    return torch.addmm(product, A, B, beta=0, out=product)


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None
