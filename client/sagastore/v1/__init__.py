"""Generated protocol code: see the `proto` target of the Makefile."""
