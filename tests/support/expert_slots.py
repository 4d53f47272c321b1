"""What slots for experts hold."""

from pipeline import Model


def all_slots_are_back(model: Model) -> bool:
    """Whether no expert is in a slot that the store does not keep."""
    line = model.runtime.expert_line
    assert line is not None
    kept = line.store.kept()
    return all(budget.statistics().held == kept[budget.name] for budget in line.budgets)
