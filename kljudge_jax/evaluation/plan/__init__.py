"""What a run takes of devices that need not be here: compiled for them, and read from what the compiler made."""
