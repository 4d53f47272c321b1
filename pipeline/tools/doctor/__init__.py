"""What `penstock doctor` looks at: this machine, and whether a model says the same however its weights arrive."""
