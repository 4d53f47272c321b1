"""Tools that measure, draw and print; the runtime imports none of them but the trace."""
