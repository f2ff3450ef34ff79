"""Gives an optimizer the state tensors that a checkpoint has for it, so that they can be filled in place.

A new optimizer has none: torch's optimizers make them in their first step, with the placements of their parameters.
"""

from typing import Any

from esker import dtypes


def is_optimizer(value: Any) -> bool:
    torch = dtypes.torch_if_imported()
    return torch is not None and isinstance(value, torch.optim.Optimizer)


def group_sizes(optimizer: Any) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def make_state(optimizer: Any, wanted: set[int]) -> None:
    """Makes state for the parameters with these numbers (as in state_dict()["state"]), and for no others.

    If the optimizer's state is not exactly for these, it is dropped and made by a step with zero gradients and learning rate
    zero, which changes no parameter. Gradients that were there stay.
    """
    import torch

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    present = {number for number, parameter in enumerate(parameters) if optimizer.state.get(parameter)}
    if present == wanted:
        return
    gradients = [parameter.grad for parameter in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.state.clear()
    try:
        for number, parameter in enumerate(parameters):
            parameter.grad = _zero_gradient(torch, optimizer, parameter) if number in wanted else None
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = torch.zeros_like(rate) if isinstance(rate, torch.Tensor) else 0.0
        optimizer.step(lambda: 0.0)  # the loss, for those that want one (LBFGS)
    finally:
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient


def _zero_gradient(torch: Any, optimizer: Any, parameter: Any) -> Any:
    dense = torch.zeros_like(parameter)
    return dense.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else dense
