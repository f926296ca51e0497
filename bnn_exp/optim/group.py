"""Parameter groups whose `lr` is the strength of a rule: torch's LR schedulers then work on rules too."""

from typing import Any

from torch import Tensor

from bnn_exp.optim.schedules import factor


class Group(dict):
    """A parameter group in which `lr` stands for another entry, the strength of a rule.

    Reading `lr` gives the strength of the coming step, by the group's own schedule. Writing it sets the strength, and the
    schedule becomes `constant`. All else is a dict; its items are the entries as they are kept.

    Args:
        entries: of a parameter group, with `schedule`, `total_steps` and a count of steps.
        strength: the entry that `lr` stands for; None where there is none.
        count: the entry that counts steps.
    """

    def __init__(self, entries: dict[str, Any], strength: str | None, count: str):
        super().__init__(entries)
        self.strength, self.count = strength, count
        self.checked: tuple | None = None  # the hyperparameters that the optimizer has checked last
        self.on_device: Tensor | None = None  # `lr` as a tensor on a GPU, while the optimizer takes a step; else None

    def at(self, name: str, step: int) -> float:
        """Returns the entry `name` times the factor of the schedule at a step of the group."""
        return super().__getitem__(name) * factor(self["schedule"], step, self["total_steps"])

    def kept(self, name: str) -> Any:
        """Returns the entry `name` as it is kept, without the schedule."""
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (name == "lr" and self.strength is not None)

    def __getitem__(self, name: str) -> Any:
        if name == "lr" and self.strength is not None:
            return self.at(self.strength, self[self.count]) if self.on_device is None else self.on_device
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (dict.get would not call __getitem__)

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "lr" and self.strength is not None:
            super().__setitem__(self.strength, value)
            name, value = "schedule", "constant"
        super().__setitem__(name, value)

    def update(self, *entries: Any, **more: Any) -> None:
        for name, value in dict(*entries, **more).items():
            self[name] = value

    def __reduce__(self):
        return type(self), (dict(self), self.strength, self.count)


class Grouped:
    """A mixin for optimizers: every parameter group is a `Group`, those that are added or loaded later too.

    It stands before torch's class in the list of base classes.
    """

    step_entry = "step"  # the entry of a group that counts its steps

    def strength_of(self, entries: dict[str, Any]) -> str | None:
        """Returns the name of the entry that `lr` of a group stands for, or None if `lr` stands for no entry."""
        raise NotImplementedError

    def entries(self, group: dict[str, Any]) -> dict[str, Any]:
        """Returns the entries that a new or loaded group keeps."""
        return group

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group. The group counts its own steps, from 0; its tensors are numbered after all earlier ones.

        Raises:
            ValueError: the optimizer can't train the group, which is then not added.
        """
        super().add_param_group(param_group)
        try:
            self.param_groups[-1] = self._grouped(self.param_groups[-1])
            self.check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def check_group(self, group: Group) -> None:
        """Checks that the optimizer can train the newest group.

        Raises:
            ValueError: the optimizer can't train it.
        """
        factor(group["schedule"], 0, group["total_steps"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.param_groups = [self._grouped(group) for group in self.param_groups]

    def _grouped(self, group: dict[str, Any]) -> Group:
        entries = self.entries(dict(group))
        return Group(entries, self.strength_of(entries), self.step_entry)
