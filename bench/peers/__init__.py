"""What our runtime is compared with. Runs in an environment of its own; imports nothing of the project's."""
