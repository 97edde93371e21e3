"""Encoder and decoder together: what is like this image, what is probable, and the report that is written of it."""
