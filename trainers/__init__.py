"""Ray Train: models trained by the shared loop, and the calibrated matcher made of them."""
