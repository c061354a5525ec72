"""QEMU: its arguments, its process, its monitor, and what works on this host."""
