"""The actor line: it moves bytes, and budgets bound how far. Imports only the standard library (rule 5)."""
