"""One training script per system, and what they share."""
