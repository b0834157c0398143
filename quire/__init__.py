"""Quire's library: plain Python, torch and pyarrow; knows nothing of Ray."""
