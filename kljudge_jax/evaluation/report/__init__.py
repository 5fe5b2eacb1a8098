"""What was found, as tables, pictures and pages, with the uncertainty of every figure."""
