"""The one strict builder: names, shorthands, old names, and what came from the environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ivg.config import DecodeConfig, ModelConfig, ValueConfig
from ivg.config.yaml_file import build, config_from_dict, read_yaml_file
from ivg.errors import UserError

A = ModelConfig(path="a")


def value_of(data: dict[str, Any]) -> ValueConfig:
    (value,) = config_from_dict({"base": "b", "values": [data]}).values
    return value


@pytest.mark.parametrize("name", ["chunk_weight", "weight"])
def test_a_value_models_weight_has_one_name_and_the_old_one_is_read(name: str) -> None:
    wanted = ValueConfig(model=A, chunk_weight=0.5)
    assert value_of({"path": "a", name: 0.5}) == wanted
    assert value_of({"model": {"path": "a"}, name: 0.5}) == wanted
    assert ValueConfig(model=A, **{name: 0.5}) == wanted
    assert dataclasses.replace(wanted, beta=2.0).chunk_weight == 0.5
    assert "weight" not in dataclasses.asdict(wanted)


def test_two_names_of_one_thing_are_refused() -> None:
    with pytest.raises(UserError, match="two names of one thing; give chunk_weight"):
        ValueConfig(model=A, chunk_weight=1.0, weight=1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "a", "wieght": 1}, r"values: unknown key 'wieght'; did you mean 'weight'\?"),
        ({"model": {"pth": "a"}}, r"model: unknown key 'pth'; did you mean 'path'\?"),
        (
            {"model": "a", "chunk_wight": 1},
            r"values: unknown key 'chunk_wight'; did you mean 'chunk_weight'\?",
        ),
    ],
)
def test_unknown_keys_at_every_depth(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        value_of(data)


@dataclasses.dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner | None = None
    more: tuple[Entry, ...] = ()


def test_any_nested_dataclass_is_read_as_strictly() -> None:
    data = {"inner": {"sizes": [1]}, "more": [{"sizes": [2, 3]}]}
    assert build(Outer, data, "grid") == Outer(Inner((1,)), (Entry((2, 3)),))
    for wrong, message in (
        ({"inner": {"size": 1}}, "inner: unknown key 'size'; did you mean 'sizes'"),
        ({"more": [{"sizes": "12"}]}, "more: sizes is '12'; give a list"),
        ({"more": [{"sizes": ["x"]}]}, "give a list, each of its entries an integer"),
        ({"other": 1}, "grid: unknown key 'other'"),
    ):
        with pytest.raises(UserError, match=message):
            build(Outer, wrong, "grid")


def test_what_the_environment_gave_is_known_by_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "secret")
    monkeypatch.setenv("ALSO", "base")
    file = tmp_path / "c.yaml"
    file.write_text("base: {path: 'p-${oc.env:MINE}', revision: x}\nvalues: [{path: '${oc.env:ALSO}'}]\n")
    found = read_yaml_file(str(file), ["base.revision=${oc.env:MINE}"])
    assert found.data["base"] == {"path": "p-secret", "revision": "secret"}
    assert found.references == {
        "p-secret": "p-${oc.env:MINE}",
        "secret": "${oc.env:MINE}",
        "base": "${oc.env:ALSO}",
    }
    assert isinstance(config_from_dict(found.data), DecodeConfig)
