"""Running Quire on other machines: what is checked, built and applied before it costs money."""
