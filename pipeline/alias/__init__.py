"""The package `pipeline` under the name `penstock`, which people install and run. Nothing in `pipeline` imports it."""
