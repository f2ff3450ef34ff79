"""What a training job's state is made of: modules and their wrappers, optimizers, schedules, scalers, random numbers; and tensors of
odd kinds, saved and loaded in place."""

import collections
import os
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from native import Server
from states import difference
from torch.optim import lr_scheduler
from torch.utils.data import default_collate

import esker


def one_rank(server: Server, run: str, **options: Any) -> esker.Checkpointer:
    return esker.Checkpointer(server.address, run, 0, 1, **options)


def through(server: Server, run: str, state: Any, into: Any = None) -> Any:
    """What is loaded, into `into` if it is given, after the state was saved."""
    with one_rank(server, run) as ckpt:
        ckpt.save(1, state).wait(60)
        return ckpt.load(into=into)[1]


# --- modules


class Tied(torch.nn.Module):
    """A head that shares its weight with the embedding, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.mask = torch.nn.Buffer(torch.rand(4), persistent=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.head(self.norm(self.embedding(tokens)))


def tied(seed: int) -> Tied:
    torch.manual_seed(seed)
    model = Tied()
    model(torch.arange(7))
    return model


def test_tied_weights_stay_tied(server: Server, run: str) -> None:
    saved, loaded = tied(1), tied(2)
    mask, weight = loaded.mask.clone(), loaded.head.weight
    through(server, run, {"model": saved}, {"model": loaded})
    assert difference(dict(saved.state_dict()), dict(loaded.state_dict())) is None
    assert loaded.head.weight is weight is loaded.embedding.weight and weight.requires_grad and weight.is_leaf
    assert torch.equal(loaded.mask, mask)


def in_data_parallel(model: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.parallel.DistributedDataParallel(model)


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, torch.nn.Module)
    return wrapped


def compiled_inside(model: torch.nn.Module) -> torch.nn.Module:
    model.norm = compiled(model.norm)  # type: ignore[arg-type]
    return model


WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "bare": lambda model: model,
    "ddp": in_data_parallel,
    "compiled": compiled,
    "compiled_ddp": lambda model: compiled(in_data_parallel(model)),
    "ddp_of_compiled": lambda model: in_data_parallel(compiled(model)),
    "compiled_inside": compiled_inside,
}


@pytest.fixture
def process_group() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrappers_come_and_go_between_runs(server: Server, run: str, process_group: None) -> None:
    """What DDP and torch.compile put before a parameter's name is no part of it."""
    expected = dict(tied(1).state_dict())
    for name, wrap in WRAPPERS.items():
        with one_rank(server, f"{run}-{name}") as ckpt:
            ckpt.save(1, {"model": wrap(tied(1))}).wait(60)
            assert list(ckpt.load()[1]["model"]) == list(expected)
            for other in WRAPPERS.values():
                model = tied(2)
                ckpt.load(into={"model": other(model)})
                found = {key.replace("_orig_mod.", ""): value for key, value in model.state_dict().items()}
                assert difference(expected, found) is None


def test_extra_state_is_restored_through_the_module(server: Server, run: str) -> None:
    class Counting(torch.nn.Linear):
        seen = 0

        def get_extra_state(self) -> Any:
            return {"seen": self.seen}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    saved, loaded = compiled(Counting(2, 2)), Counting(2, 2)
    saved._orig_mod.seen = 5  # type: ignore[union-attr]
    through(server, run, saved, loaded)
    assert loaded.seen == 5 and torch.equal(loaded.weight, saved.weight)  # type: ignore[arg-type]


def test_a_module_without_elements_yet_is_named(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        with pytest.raises(TypeError, match="^model.weight: .* run the module once"):
            ckpt.save(1, {"model": torch.nn.LazyLinear(3)})
        ckpt.save(1, {"model": torch.nn.Linear(2, 3)}).wait(60)
        for model, words in ((torch.nn.LazyLinear(3), "run the module once"), (torch.nn.Linear(2, 3, device="meta"), "device meta")):
            with pytest.raises(esker.StateMismatchError, match=f"model.weight: .*{words}"):
                ckpt.load(into={"model": model})


# --- optimizers, schedules, scalers


def two_groups(make: Any, seed: int) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    if make is torch.optim.LBFGS:  # it takes no groups
        return parameters, make(parameters, lr=0.1)
    return parameters, make([{"params": parameters[:1], "lr": 0.01, "weight_decay": 0.1}, {"params": parameters[1:], "lr": 0.02}])


def steps(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, count: int) -> None:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.stack([(parameter**4).sum() for parameter in parameters]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        if isinstance(optimizer, torch.optim.SparseAdam):
            for parameter in parameters:
                parameter.grad = parameter.grad.to_sparse()  # type: ignore[union-attr]
        return total

    for _ in range(count):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        else:
            loss()
            optimizer.step()


OPTIMIZERS = [
    value
    for value in vars(torch.optim).values()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
]


@pytest.mark.parametrize("make", [*OPTIMIZERS, "sgd_with_momentum", "amsgrad"], ids=str)
def test_every_optimizer_goes_on_bit_for_bit(server: Server, run: str, make: Any) -> None:
    if make == "sgd_with_momentum":
        make = lambda groups: torch.optim.SGD(groups, momentum=0.9)  # noqa: E731
    if make == "amsgrad":
        make = lambda groups: torch.optim.Adam(groups, amsgrad=True)  # noqa: E731
    parameters, optimizer = two_groups(make, 1)
    steps(parameters, optimizer, 3)
    resumed, resumed_optimizer = two_groups(make, 2)
    state = {"parameters": list(parameters), "optim": optimizer}
    through(server, run, state, {"parameters": list(resumed), "optim": resumed_optimizer})
    assert difference(optimizer.state_dict(), resumed_optimizer.state_dict()) is None
    for each in ((parameters, optimizer), (resumed, resumed_optimizer)):
        steps(*each, 2)
    assert difference([p.data for p in parameters], [p.data for p in resumed]) is None


def test_an_optimizer_of_other_parameters_is_refused_before_anything_changes(server: Server, run: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    state: Any = {"weight": weight, "optim": torch.optim.AdamW([weight, torch.nn.Parameter(torch.ones(3))])}
    with one_rank(server, run) as ckpt:
        ckpt.save(1, state).wait(60)
        with torch.no_grad():
            weight.zero_()
        for parameters, words in (([weight], r"groups of \[1\] parameters, stored is groups of \[2\]"), ([], r"groups of \[0\]")):
            optimizer = torch.optim.AdamW([{"params": parameters}])
            with pytest.raises(esker.StateMismatchError, match=f"optim: wanted is {words}"):
                ckpt.load(into={"weight": weight, "optim": optimizer})
            assert weight.tolist() == [0, 0] and not optimizer.state


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi_step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.PolynomialLR(o)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on(server: Server, run: str, name: str) -> None:
    def job() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
        return optimizer, SCHEDULES[name](optimizer)

    def advance(optimizer: torch.optim.Optimizer, schedule: Any) -> list[float]:
        rates = []
        for _ in range(5):
            optimizer.step()
            schedule.step(*([1.0] if name == "plateau" else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    whole, resumed = job(), job()
    advance(*whole)
    through(server, run, {"optim": whole[0], "schedule": whole[1]}, {"optim": resumed[0], "schedule": resumed[1]})
    assert advance(*whole) == advance(*resumed)


def test_a_gradient_scaler_goes_on(server: Server, run: str) -> None:
    saved, loaded = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.amp.GradScaler("cpu")
    loaded_off = torch.amp.GradScaler("cpu", enabled=False)
    through(server, run, {"scaler": saved, "off": loaded_off}, {"scaler": loaded, "off": loaded_off})
    assert loaded.state_dict() == saved.state_dict() and loaded.get_scale() == 1024.0


# --- random numbers


def test_random_number_generators_go_on(server: Server, run: str) -> None:
    generator, legacy, modern, plain = torch.Generator().manual_seed(3), np.random.RandomState(4), np.random.default_rng(5), random.Random(6)
    state = {
        "torch": generator.get_state(),
        "legacy": legacy.get_state(),
        "numpy": modern.bit_generator.state,
        "python": plain.getstate(),
    }
    loaded = through(server, run, state)
    again = torch.Generator()
    again.set_state(loaded["torch"])
    assert torch.equal(torch.rand(9, generator=generator), torch.rand(9, generator=again))
    other_legacy, other_modern, other_plain = np.random.RandomState(), np.random.default_rng(), random.Random()
    other_legacy.set_state(loaded["legacy"])
    other_modern.bit_generator.state = loaded["numpy"]
    other_plain.setstate(loaded["python"])
    assert legacy.rand() == other_legacy.rand() and modern.random() == other_modern.random() and plain.random() == other_plain.random()


def test_a_generator_itself_is_refused_with_the_way_to_do_it(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt, pytest.raises(TypeError, match=r"^rng: can't store a .*Generator: store what its get_state\(\)"):
        ckpt.save(1, {"rng": torch.Generator()})


# --- containers


def test_containers_of_the_standard_library(server: Server, run: str) -> None:
    state = {
        "ordered": collections.OrderedDict(b=torch.ones(1), a=2),
        "default": collections.defaultdict(list, {"x": [torch.zeros(2)]}),
        "counter": collections.Counter("aab"),
        "size": torch.Size([2, 3]),
        "batch": default_collate([{"x": 1}, {"x": 2}]),
    }
    loaded = through(server, run, state)
    assert list(loaded["ordered"]) == ["b", "a"] and loaded["counter"] == {"a": 2, "b": 1}
    assert loaded["size"] == (2, 3) and type(loaded["size"]) is tuple
    into: Any = {key: type(value)() for key, value in state.items() if key in ("ordered", "default", "counter")}
    with one_rank(server, f"{run}-again") as ckpt:
        ckpt.save(1, state).wait(60)
        ckpt.load(into=into, strict=False)
        target: Any = collections.defaultdict(list, {"x": [torch.ones(2)]})
        ckpt.load(into={"default": target}, only="default.*")
    assert isinstance(target, collections.defaultdict) and target["x"][0].tolist() == [0, 0]


# --- tensors of odd kinds, in place


def test_views_of_one_memory_are_all_filled(server: Server, run: str) -> None:
    def views(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"flat": flat, "head": flat[:3], "middle": flat[2:7], "odd": flat[1::2], "grid": flat.view(2, 5), "turned": flat.view(2, 5).t()}

    saved, target = torch.arange(10.0), torch.zeros(10)
    through(server, run, views(saved), views(target))
    assert torch.equal(target, saved)
    for name in views(saved):  # each alone
        target = torch.zeros(10)
        with one_rank(server, f"{run}-{name}") as ckpt:
            ckpt.save(1, {name: views(saved)[name]}).wait(60)
            ckpt.load(into={name: views(target)[name]})
        assert torch.equal(views(target)[name], views(saved)[name])


def test_lazy_conjugates_and_foreign_byte_orders_are_filled(server: Server, run: str) -> None:
    def state(values: list[complex]) -> dict[str, Any]:
        tensor = torch.tensor(values)
        return {
            "conjugate": tensor.conj(),
            "negative": tensor.clone().conj().imag,
            "turned": tensor.clone().reshape(2, 2).mH,
            "big_endian": np.array([value.real for value in values], dtype=">f8"),
        }

    values = [1 + 2j, 3 - 4j, 5j, 6 + 0j]
    into = state([0j] * 4)
    through(server, run, state(values), into)
    for name, found in state(values).items():
        assert np.array_equal(np.asarray(into[name].resolve_neg().resolve_conj() if name != "big_endian" else into[name]),
                              np.asarray(found.resolve_neg().resolve_conj() if name != "big_endian" else found)), name


def test_what_cant_be_filled_in_place_is_refused_before_anything_changes(server: Server, run: str) -> None:
    frozen = np.zeros(3, dtype=np.float32)
    frozen.flags.writeable = False
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"a": torch.ones(3), "b": torch.ones(3)}).wait(60)
        for target in (torch.zeros(1).expand(3), frozen):
            first = torch.zeros(3)
            with pytest.raises(esker.StateMismatchError, match="b: wanted is a tensor or array that can't be written"):
                ckpt.load(into={"a": first, "b": target})
            assert first.tolist() == [0, 0, 0]


def test_a_masked_array_is_refused(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt, pytest.raises(TypeError, match="^x: can't store a masked array: store its data and its mask"):
        ckpt.save(1, {"x": np.ma.masked_array([1, 2], mask=[False, True])})


def test_parameters_keep_their_gradients_and_their_graph(server: Server, run: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    saved = {"p": torch.nn.Parameter(torch.arange(3.0)), "f": torch.ones(3), "a": (torch.ones(3, requires_grad=True) * 2)}
    through(server, run, saved, {"p": parameter, "f": frozen, "a": torch.zeros(3)})
    assert parameter.tolist() == [0, 1, 2] and parameter.requires_grad and parameter.is_leaf and parameter.grad.tolist() == [1, 1, 1]
    assert not frozen.requires_grad and frozen.tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", [np.int64(3), 3], ids=["numpy", "int"])
def test_a_step_may_be_of_numpy(server: Server, run: str, step: Any) -> None:
    with one_rank(server, run) as ckpt:
        assert ckpt.save(step, {"x": 1}).step == 3


def test_very_many_small_tensors(server: Server, run: str) -> None:
    state = {f"layer{i}.weight": torch.full((5,), float(i)) for i in range(10_000)}
    into = {name: torch.zeros(5) for name in state}
    through(server, run, {"model": state}, {"model": into})
    assert all(torch.equal(state[name], into[name]) for name in state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_modules(server: Server, run: str) -> None:
    scripted = torch.jit.script(torch.nn.Linear(3, 2))
    with esker.Checkpointer(server.address, run, 0, 1) as ckpt:
        ckpt.save(1, {"model": scripted}).wait(60)
        other = torch.jit.script(torch.nn.Linear(3, 2))
        ckpt.load(into={"model": other})
    assert difference(dict(scripted.state_dict()), dict(other.state_dict())) is None
