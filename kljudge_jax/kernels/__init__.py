"""Products that XLA's own backend does too slowly, written for the processor at hand."""
