"""How many slots experts have in each place: as many as the settings say, or all that the plan leaves room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actors.core.expert_cache import window_of
from pipeline.devices.port import Device
from pipeline.engine.settings import EngineSettings
from pipeline.groups.catalog import WeightCatalog
from pipeline.groups.groups import WeightGroup
from pipeline.groups.slot_kinds import SlotKinds
from pipeline.system.memory_plan import Holding

KIND = "expert"
"""All slots for experts are of this kind: a layer asks for whichever its rows have chosen."""
PLACE = "expert {}"
"""What the budget of the experts in a place is called."""


@dataclass(frozen=True, slots=True)
class ExpertRoom:
    """The experts of a model and the slots that they may get, by the names of the device's places."""

    catalog: WeightCatalog
    settings: EngineSettings
    device: Device

    @property
    def count(self) -> int:
        """How many experts there are, in all layers."""
        return len(self.catalog.order)

    @property
    def leaves_some_to_the_cpu(self) -> bool:
        """Whether the CPU may compute experts for the device."""
        return bool(self.settings.cpu_experts) and len(self.device.places) > 1

    @property
    def window(self) -> int:
        """How many slots of a place are for what moves."""
        return window_of(self.catalog.needed_bytes // self.count)

    @property
    def slot_bytes(self) -> dict[str, int]:
        """The size of a slot in each place."""
        places = [place.name for place in self.device.places]
        return {place: self.catalog.slot_bytes(PLACE.format(place))[KIND] for place in places}

    def least(self) -> dict[str, int]:
        """The slots that there are in any case: as the settings say, else a window for what moves, and as many kept."""
        said = {place.name: getattr(self.settings, place.experts_setting) for place in self.device.places}
        return {place: min(2 * self.window if one is None else one, self.count) for place, one in said.items()}

    def grown(self, left: Mapping[str, int]) -> dict[str, int]:
        """The least, and slots in what is `left` beside that in each place, the last place first.

        Where the last place has a slot for every expert, the places before it get no more than the least.
        """
        slots, sizes = self.least(), self.slot_bytes
        wanted = self.count
        for place in reversed(self.device.places):
            if getattr(self.settings, place.experts_setting) is None and self.settings.residency:
                more = max(0, left[place.name]) // sizes[place.name]
                slots[place.name] = max(slots[place.name], min(slots[place.name] + more, wanted))
            wanted = 0 if slots[place.name] >= self.count else wanted
        return slots

    def missed_bytes(self, slots: Mapping[str, int], used: int) -> dict[str, int]:
        """The bytes that move into each place when a pass uses so many experts, each of them as likely as any other."""
        nbytes, missed, kept = self.catalog.needed_bytes // self.count * used, {}, 0
        for place in reversed(self.device.places):
            kept = min(self.count, kept + slots[place.name])
            missed[place.name] = nbytes * (self.count - kept) // self.count
        return missed

    def holdings(self, slots: Mapping[str, int]) -> list[Holding]:
        """The memory of so many slots."""
        knobs = {place.name: place.experts_setting for place in self.device.places}
        sizes = self.slot_bytes
        return [Holding("expert slots", place, count * sizes[place], knobs[place]) for place, count in slots.items()]


def lay_out_experts(groups: Sequence[WeightGroup], device: Device) -> WeightCatalog | None:
    """Where the bytes of each expert lie in the slots of each place; None where there are none."""
    if not groups:
        return None
    places = [replace(place, name=PLACE.format(place.name)) for place in device.places]
    kinds = SlotKinds((KIND,), dict.fromkeys((group.key for group in groups), KIND))
    return WeightCatalog(groups, places, device.alignment_bytes, slot_kinds=kinds)
