"""Where bytes live and what computes: same-surface siblings of the Device port."""
