"""One decoder for every family: specs, modules, loading."""
