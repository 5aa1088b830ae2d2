"""Input: sources of records, host ops that turn records into streams, and the order in which they come. No jax here."""
