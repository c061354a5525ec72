"""Builds golden disk images from a template: boot QEMU, install, provision, export."""

__version__ = "0.1.0"
