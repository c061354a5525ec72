"""Disk images and what they are shipped as."""
