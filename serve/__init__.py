"""Ray Serve: the two-stage matcher over HTTP."""
