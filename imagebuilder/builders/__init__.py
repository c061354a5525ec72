"""Ways to a first boot: one file each."""
