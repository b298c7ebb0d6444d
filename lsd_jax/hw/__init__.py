"""What chips can do, as numbers that say where they come from."""
