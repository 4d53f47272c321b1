"""Who moves bytes and what stops them: the actor line. Imports only the standard library (rule 5)."""
