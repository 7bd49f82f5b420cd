"""The CPU of a guest: what may be asked for, and the text that gives the same CPU on every host.

A model's name alone does not: QEMU versions change models, and an accelerator drops what the host lacks with no more
than a warning. So the frozen text names the versioned model and every feature, and ends with `enforce`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmferry.core.errors import BadInput

#: Models that are whatever this host is: no second host builds the same.
UNMIGRATABLE_MODELS = frozenset({"host", "max", "base"})

_SWITCHES = {"on": True, "off": False}


@dataclass(frozen=True, slots=True)
class CpuRequest:
    """What the guest file says about the CPU, taken apart."""

    model: str
    features: Mapping[str, bool]

    def text(self) -> str:
        """Return it as `-cpu` takes it."""
        return ",".join([self.model, *(f"{name}={'on' if on else 'off'}" for name, on in self.features.items())])


def parse_cpu(text: str) -> CpuRequest:
    """Take `MODEL[,+feature][,-feature][,feature=on|off]` apart.

    Raises:
        BadInput: the model is whatever the host is, or a feature is not one of the three forms.
    """
    model, *words = text.split(",")
    if model in UNMIGRATABLE_MODELS or not model:
        raise BadInput(
            f"CPU model {model!r} is different on every host, so its guest could not move",
            fix="name a model that all hosts offer, e.g. qemu64 or EPYC",
        )
    return CpuRequest(model, dict(_parse_feature(word, text) for word in words))


def _parse_feature(word: str, text: str) -> tuple[str, bool]:
    name, equals, switch = word.partition("=")
    if not equals and word[:1] in {"+", "-"}:
        name, switch = word[1:], "on" if word[0] == "+" else "off"
    if switch not in _SWITCHES or not name:
        raise BadInput(f"CPU {text!r}: seen {word!r}, expected +feature, -feature or feature=on|off")
    return name.replace("_", "-"), _SWITCHES[switch]


def freeze_cpu(
    request: CpuRequest, versioned_model: str, expanded: Mapping[str, object], unavailable: Iterable[str]
) -> str:
    """Return the CPU as both hosts must build it.

    Args:
        request: what was asked for.
        versioned_model: what the model's name stands for in this machine type, e.g. qemu64-v1.
        expanded: properties of the model's static expansion; features are those that are booleans.
        unavailable: features asked for that the accelerator does not offer here.

    Raises:
        BadInput: the accelerator lacks features of the model. They are not dropped silently: the fix names the text
            to ask for.
    """
    missing = sorted(set(unavailable))
    if missing:
        without = ",".join([request.text(), *(f"-{name}" for name in missing)])
        raise BadInput(
            f"CPU {request.text()} needs features that this host does not offer: {', '.join(missing)}",
            fix=f'take cpu = "{without}", or another model',
        )
    features = {name: True for name, value in expanded.items() if value is True}
    features.update(request.features)
    return ",".join(
        [versioned_model, *(f"{n}={'on' if on else 'off'}" for n, on in sorted(features.items())), "enforce"]
    )


def without_enforce(cpu: str) -> str:
    """Return a frozen CPU such that QEMU starts and says what is missing instead of refusing."""
    return cpu.removesuffix(",enforce")
