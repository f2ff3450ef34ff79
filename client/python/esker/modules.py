"""A module's state under the names that its author gave: DDP and torch.compile put prefixes before them, which come and go
with how the job is run.
"""

from typing import Any

from esker import dtypes

_COMPILED = "_orig_mod"


def is_module(value: Any) -> bool:
    torch = dtypes.torch_if_imported()
    return torch is not None and isinstance(value, torch.nn.Module)


def state_of(value: Any) -> Any:
    """value.state_dict(); of a module without the prefixes "module." of DDP and "_orig_mod." of compiled modules."""
    if not is_module(value):
        return value.state_dict()
    return {_bare_name(name): state for name, state in _bare(value).state_dict().items()}


def load_state(value: Any, state: Any) -> None:
    """value.load_state_dict(state), of a state as state_of returns it."""
    if not is_module(value):
        value.load_state_dict(state)
        return
    module = _bare(value)
    module.load_state_dict({name: state[_bare_name(name)] for name in module.state_dict()})


def _bare(module: Any) -> Any:
    torch = dtypes.torch_if_imported()
    while True:
        if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            module = module.module
        elif _COMPILED in module._modules:  # TorchScript's has no get()
            module = module._modules[_COMPILED]
        else:
            return module


def _bare_name(name: str) -> str:
    """Without the prefixes of compiled modules further in."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)
