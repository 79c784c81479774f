"""A signature as a schema: what is accepted, what is refused, and in which words."""

from collections.abc import Callable
from typing import Annotated, Literal

import pytest

from nested.errors import UserError
from nested.signature import Bound, accepts, arguments, build, checked, locate, pair, summary


def thing(
    params: object,
    width: Annotated[int, Bound(ge=1)],
    rate: float = 0.1,
    kind: Literal["a", "bee"] = "a",
    sizes: tuple[int, ...] = (),
    part: object = None,
    seed: int = 0,
) -> dict:
    """Make a thing.

    More words.
    """
    return {"params": params, "width": width, "rate": rate, "kind": kind, "sizes": sizes, "part": part, "seed": seed}


def inner(depth: int = 2) -> str:
    return f"depth {depth}"


HERE = __name__


def test_context_is_no_key() -> None:
    assert list(arguments(thing)) == ["width", "rate", "kind", "sizes", "part", "seed"]
    assert summary(thing) == "Make a thing."


def test_values_are_coerced_to_what_is_declared() -> None:
    values = checked(thing, {"width": 3, "rate": 1, "sizes": [1, 2]}, "model")
    assert values == {"width": 3, "rate": 1.0, "sizes": (1, 2)}
    assert isinstance(values["rate"], float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 3, "wdith": 4}, ["model.wdith", "did you mean 'model.width'"]),
        ({"width": "wide"}, ["model.width", "'wide' is not allowed", "int >= 1"]),
        ({"width": 0}, ["model.width", "0 is not allowed", "int >= 1"]),
        ({"width": True}, ["model.width", "True is not allowed"]),
        ({"width": 2.5}, ["model.width", "2.5"]),
        ({"width": 1, "kind": "be"}, ["model.kind", "did you mean 'bee'", "a | bee"]),
        ({"width": 1, "sizes": 3}, ["model.sizes", "list of int"]),
        ({"width": 1, "sizes": [1, "x"]}, ["model.sizes[1]", "'x'"]),
        ({}, ["a value is needed", "model.width"]),
        ({"width": "???"}, ["a value is needed", "model.width"]),
    ],
)
def test_wrong_values_are_named(values: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        checked(thing, values, "model")
    for word in words:
        assert word in str(caught.value)


def test_build_makes_inner_sections_first_and_gives_context_by_name() -> None:
    section = {"_target_": f"{HERE}.thing", "width": 2, "seed": None, "part": {"_target_": f"{HERE}.inner", "depth": 5}}
    made = build({k: v for k, v in section.items() if k != "seed"}, "model", params="p", seed=7, root="/data")
    assert made["part"] == "depth 5"
    assert (made["params"], made["seed"]) == ("p", 7)


def test_a_key_of_an_inner_section_is_named_with_its_path() -> None:
    with pytest.raises(UserError, match=r"model\.part\.dept.*did you mean"):
        build(
            {"_target_": f"{HERE}.thing", "width": 2, "part": {"_target_": f"{HERE}.inner", "dept": 5}},
            "model",
            params=None,
        )


def picky(size: int, rate: float = 1.0) -> str:
    if rate > 1:
        raise UserError("at most 1", key="model.rate", seen=rate, allowed="<= 1")
    if size > 9:
        raise UserError("at most 9", key="model.size", seen=size)
    return f"{size} at {rate}"


def whole(size: int, part: Callable[..., str]) -> str:
    return part(size=size)


@pytest.mark.parametrize(
    ("size", "own", "key"),
    [
        (2, {"rate": 3.0}, "model.part.rate"),  # the part's own: only its maker knows where it is
        (12, {}, "model.size"),  # given by the whole, from a key of its own
        (2, {"size": 3}, "model.part.size"),  # not for two to give
    ],
)
def test_an_error_of_a_part_has_the_key_that_was_written(size, own, key) -> None:
    section = {"_target_": f"{HERE}.whole", "size": size, "part": {"_target_": f"{HERE}.picky", **own}}
    with pytest.raises(UserError) as caught:
        build(section, "model")
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")


def test_targets_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="no module named 'nowhere'"):
        locate("nowhere.Thing", "model._target_")
    with pytest.raises(UserError, match="did you mean 'inner'"):
        locate(f"{HERE}.iner", "model._target_")
    with pytest.raises(UserError, match="dotted path"):
        locate("Thing", "model._target_")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nested.memory.lstm", r"is a module; name what it holds: nested\.memory\.lstm\.LSTMMemory"),
        ("nested.models", r"is a module; name what it holds: nested\.models\.hope, "),
        ("nested.memory.LSTM", r"did you mean 'lstm'\?\); allowed: attention, .*delta, .*lstm"),
        (
            "nested.memory.lstm.torch",
            r"unknown name in nested\.memory\.lstm: 'torch'.*; allowed: LSTMMemory, LSTMState$",
        ),
    ],
)
def test_a_module_is_no_target_and_what_it_holds_is_said(target: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        locate(target, "model._target_")


def test_what_a_callable_takes_and_returns() -> None:
    assert [accepts(lambda x, state=None: 0, n) for n in range(4)] == [False, True, True, False]
    assert pair((1, None), "f", "(y, state)") == (1, None)
    with pytest.raises(UserError, match=r"^model\.memory: f returned a list; \(y, state\) is needed"):
        pair([1, 2], "f", "(y, state)", "model.memory")


def test_torch_optimizers_have_a_schema_too() -> None:
    from torch.optim import SGD

    assert checked(SGD, {"lr": 1, "momentum": 0.9}, "optim") == {"lr": 1.0, "momentum": 0.9}
    with pytest.raises(UserError, match="momentun"):
        checked(SGD, {"momentun": 0.9}, "optim")
