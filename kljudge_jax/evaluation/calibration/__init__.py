"""A relaxed rule's threshold from a budget that may be lost."""
