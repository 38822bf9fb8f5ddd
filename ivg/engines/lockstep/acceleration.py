"""The one place that knows `lockstep/cpu`: asks it, where the folder is there, to make an engine faster."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence

from torch import nn

from ivg.engines.lockstep.model_runner import ModelRunner
from ivg.errors import UserError

VARIABLE = "IVG_CPU_ACCELERATIONS"
_GUEST = "ivg.engines.lockstep.cpu"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accelerations:
    """What a CPU does beyond plain torch; responses stay the same but for the last bits of logits.

    Attributes:
        packed_weights: linear layers whose weights lie in the order in which the CPU reads them.
        fast_gelu: GELU in its tanh form in four operations instead of eight.
        shared_prefixes: rows that continue one prefix read its keys and values once.
        common_columns: so do prefixes of one prompt for what they have in common.
        compiled_attention: attention over shared prefixes in a loop of C++, where it was compiled.
    """

    packed_weights: bool = True
    fast_gelu: bool = True
    shared_prefixes: bool = True
    common_columns: bool = True
    compiled_attention: bool = True

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def only(cls, names: Sequence[str]) -> Accelerations:
        """Return these and no others."""
        return cls(**{name: name in names for name in cls.names()})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Accelerations:
        """Read `IVG_CPU_ACCELERATIONS`: `all` (the default), `none`, or names with commas between them.

        Raises:
            UserError: a name that is none of ours.
        """
        given = environment.get(VARIABLE, "all")
        if given in ("all", "none"):
            return cls.only(cls.names() if given == "all" else ())
        names = [name.strip() for name in given.split(",")]
        if unknown := [name for name in names if name not in cls.names()]:
            raise UserError(
                f"{VARIABLE} names {unknown[0]!r}; give all, none, or some of {', '.join(cls.names())}"
            )
        return cls.only(names)


def accelerate(
    runners: Sequence[ModelRunner], modules: Sequence[nn.Module], wanted: Accelerations | None = None
) -> None:
    """Make the models of an engine faster in place where they run on a CPU; once, when it is built.

    Args:
        runners: of the engine.
        modules: networks that are ours to change; a runner over another one stays as it is.
        wanted: default: what the environment says.
    """
    wanted = wanted or Accelerations.from_environment()
    if not _has_guest():
        return
    from ivg.engines.lockstep import cpu

    ours = {id(child) for module in modules for child in module.modules()}
    grow_alike = [r for r in runners if id(r.module) in ours and r.rows_grow_alike]
    cpu.accelerate(grow_alike, modules, **dataclasses.asdict(wanted))


def packs_weights() -> bool:
    """Tell whether an engine on this CPU copies weights into the order in which the CPU reads them."""
    return Accelerations.from_environment().packed_weights and _has_guest()


def has_compiled_loops() -> bool:
    """Tell whether an engine on this CPU uses compiled loops, without which last bits differ."""
    wanted = Accelerations.from_environment()
    if not (wanted.shared_prefixes and wanted.compiled_attention and _has_guest()):
        return False
    from ivg.engines.lockstep import cpu

    return cpu.has_compiled_loops()


def _has_guest() -> bool:
    """Tell whether the folder is there; one with nothing but leftovers of Python in it has no origin."""
    found = importlib.util.find_spec(_GUEST)
    return found is not None and found.origin is not None
