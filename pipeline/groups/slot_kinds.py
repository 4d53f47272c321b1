"""Which kinds of slot a budget has, and which kind a group needs."""


def slot_counts(groups: int, *, two_kinds: bool) -> dict[str, int]:
    """How many slots of each kind a budget of so many groups has: half each, the odd one large.

    Attn and ffn groups differ by a factor of 4 to 7 in size, so one-size slots would waste most of the memory.
    A single slot must hold either kind.
    """
    return {"attn": groups // 2, "ffn": groups - groups // 2} if two_kinds else {"ffn": groups}


def slot_kind(group: str, *, two_kinds: bool) -> str:
    """The kind of slot that a group of this name needs.

    The slices of the head go on as the layers do, attn and ffn in turn, so that a pass ends without waiting for the
    slots of one kind while those of the other are free.
    """
    half, _, index = group.partition(".")
    like_attn = half == "attn" or (half == "head" and int(index) % 2 == 0)
    return "attn" if two_kinds and like_attn else "ffn"
