"""What changes a running guest: one file each."""
