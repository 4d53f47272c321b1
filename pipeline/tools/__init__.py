"""What measures, draws and prints; the runtime imports none of it but the trace."""
