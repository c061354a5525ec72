"""What is done with a finished image: one file each."""
