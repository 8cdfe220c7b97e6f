"""One file per measure of trained models."""
