"""The checks of `penstock doctor`: of this machine, and that a model says the same however its weights arrive."""
