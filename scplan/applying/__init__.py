"""A plan is carried out, read back, and taken back when a step fails or the process dies."""
