"""Rules x draft lengths over the problems of tasks."""
